"""Errors on one line, of bounded length, with what is wrong and what to do."""

import pytest

from mlx_vlm_moxin.checkpoints.messages import MAX_MESSAGE, causes, one_line, print_error


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
