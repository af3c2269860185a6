"""Errors on one line, of bounded length, with what is wrong and what to do."""

import pytest

from mlx_vlm_moxin.checkpoints.messages import (
    MAX_MESSAGE,
    bounded_errors,
    causes,
    one_line,
    print_error,
)
from mlx_vlm_moxin.checkpoints.sources.base import malformed


def test_a_long_text_keeps_its_beginning_and_its_end():
    line = one_line("wrong\n" + 1000 * "word " + "\tdo that")
    assert len(line) == MAX_MESSAGE
    assert line.startswith("wrong word")
    assert line.endswith("word do that")
    assert one_line("a" * 20, limit=20) == "a" * 20
    assert len(one_line("a" * 21, limit=20)) == 20


def test_control_characters_and_empty_texts_read_well():
    assert one_line("a\x1b[31m\x00b") == "a?[31m?b"
    assert one_line(ValueError("")) == "ValueError"


def test_the_chain_of_causes_ends():
    error, inner = ValueError("outer"), KeyError("inner")
    error.__cause__ = inner
    assert list(causes(error)) == [error, inner]
    assert list(causes(None)) == []


def test_an_error_is_printed_once_unless_the_traceback_is_wanted(capsys, monkeypatch):
    assert print_error(OSError("no\nroom")) == 1
    assert capsys.readouterr().err == "error: no room\n"
    monkeypatch.setenv("MLX_VLM_MOXIN_TRACEBACK", "1")
    with pytest.raises(OSError, match="room"):
        print_error(OSError("no\nroom"))


def test_two_thirds_of_a_cut_text_are_its_beginning():
    text = "".join(chr(ord("a") + i) for i in range(26))
    assert one_line(text, limit=15) == "abcdefg...vwxyz"


def test_a_word_longer_than_any_name_is_cut_by_itself():
    word = 200 * "a"
    assert one_line(word) == word
    assert len(one_line(word + "a")) == 200


@pytest.mark.parametrize("text", ["a\x1b[31mb", "a\nb", "a" * (MAX_MESSAGE + 1)])
@pytest.mark.parametrize("kind", [OSError, ValueError, FileNotFoundError])
def test_errors_about_files_are_bounded_and_keep_their_type(kind, text):
    with pytest.raises(kind) as caught, bounded_errors():
        raise kind(text)
    assert type(caught.value) is kind
    assert str(caught.value) == one_line(text)
    assert str(caught.value.__cause__) == text


@pytest.mark.parametrize(
    "error", [OSError("short"), ValueError("a" * MAX_MESSAGE), KeyError("a\n")]
)
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as caught, bounded_errors():
        raise error
    assert caught.value is error


def test_a_setting_that_ends_in_an_exception_is_one_bounded_line_with_the_sources_name():
    line = malformed("owner/model", TypeError("not a\nnumber" * 50))
    assert line.startswith("A setting in owner/model is malformed (TypeError: not a")
    assert "\n" not in line
    assert len(line) < 200
