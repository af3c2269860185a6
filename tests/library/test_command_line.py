"""``python -m mlx_vlm_moxin COMMAND``: stock commands, and quantising on the fly in them."""

import importlib
import json
import subprocess
import sys

import mlx_vlm
import pytest
from comparing import answer
from hypothesis import given
from hypothesis import strategies as st
from server_process import Server, user_message
from support import HF_CHECKPOINT, MESSAGES, image_path, run_module

from mlx_vlm_moxin.__main__ import COMMANDS, main, split_arguments

MAX_TOKENS = 12
QUESTION = ["--image", image_path("photo"), "--prompt", MESSAGES[0], "--max-tokens", MAX_TOKENS]


def run(*arguments: object) -> subprocess.CompletedProcess:
    return run_module("mlx_vlm_moxin", *arguments)


def generate(model, *options: str) -> str:
    """Output of ``python -m mlx_vlm_moxin generate``, which must succeed."""
    result = run("generate", "--model", model, *options, *QUESTION)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def stock_answer(path) -> str:
    """Stock mlx-vlm's answer with the stored checkpoint."""
    return answer(*mlx_vlm.load(str(path)), max_tokens=MAX_TOKENS).text


def assert_one_line(result: subprocess.CompletedProcess, *parts: str) -> None:
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


# mlx-vlm's chat_ui loads a model when it is imported.
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "chat_ui"])
def test_every_command_has_its_main(command):
    assert callable(importlib.import_module(COMMANDS[command][0]).main)


@pytest.mark.parametrize(
    ("options", "settings"),
    [(["--quantize", "8"], (8, 64)), (["--quantize=4", "--group-size", "32"], (4, 32))],
)
def test_generate_on_the_fly_prints_what_a_converted_checkpoint_answers(
    converted, options, settings
):
    assert generate(HF_CHECKPOINT, *options) == stock_answer(converted(*settings))


def test_generate_without_quantize_is_the_stock_command():
    assert generate(HF_CHECKPOINT) == stock_answer(HF_CHECKPOINT)


def test_generate_answers_from_an_ominix_export(converted, ominix):
    assert generate(ominix) == stock_answer(converted(8))


@pytest.mark.parametrize("command", ["generate", "server"])
def test_help_shows_both_kinds_of_options(command):
    result = run(command, "--help")
    assert result.returncode == 0, result.stderr
    for option in ("--quantize BITS", "--group-size N", "--model MODEL", "--max-tokens"):
        assert option in result.stdout


def test_help_names_the_commands():
    result = run("--help")
    assert result.returncode == 0
    for command in ("generate", "server", "convert", "bench"):
        assert f"  {command} " in result.stdout


def test_convert_is_this_packages_converter(tmp_path):
    path = tmp_path / "moxin"
    options = ["-q", "--q-bits", "8", "--no-verify", "--quiet"]
    result = run("convert", "--hf-path", HF_CHECKPOINT, "--mlx-path", path, *options)
    assert result.returncode == 0, result.stderr
    assert json.loads((path / "config.json").read_text())["model_type"] == "moxin"


STOCK_OPTIONS = ["--quantize-activations", "-qa", "--quant", "--group", "-q", "--kv-group-size"]
OURS = ("--quantize", "--group-size", "--reload", "--help", "-h")


@given(
    st.lists(
        st.sampled_from(STOCK_OPTIONS) | st.text().filter(lambda text: not text.startswith(OURS))
    ),
    st.integers(0, 20),
    st.sampled_from([["--quantize", "8"], ["--quantize=8"]]),
)
def test_other_arguments_reach_the_stock_command_untouched(arguments, place, option):
    mixed = [*arguments[:place], *option, *arguments[place:]]
    own, stock = split_arguments("generate", mixed)
    assert (own.quantize, stock) == (8, arguments)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["generate", "--quantize", "7"], "invalid choice: 7 (choose from 2, 3, 4, 5, 6, 8)"),
        (["generate", "--quantize", "8", "--group-size", "256"], "invalid choice: 256"),
        (["generate", "--group-size", "32"], "no effect without --quantize"),
        (["server", "--quantize", "8", "--reload"], "--reload"),
        (["describe"], "invalid choice: 'describe'"),
        ([], "COMMAND"),
    ],
)
def test_options_that_make_no_sense_end_with_a_usage_error(arguments, part, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mlx_vlm_moxin", *arguments])
    with pytest.raises(SystemExit) as error:
        main()
    assert error.value.code == 2
    assert part in capsys.readouterr().err.splitlines()[-1]


def test_another_model_is_not_quantised_on_the_fly(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    result = run("generate", "--model", tmp_path, "--quantize", "8", *QUESTION)
    assert_one_line(result, "--quantize is for Moxin", "'qwen2_vl'", "mlx_vlm.convert -q")


def test_a_damaged_export_is_named_in_one_line(tmp_path, ominix):
    from source_checkpoints import copy_checkpoint

    path = copy_checkpoint(ominix, tmp_path / "damaged", skip=("quantize_config.json",))
    result = run("generate", "--model", path, *QUESTION)
    assert_one_line(result, "quantize_config.json")


class MoxinServer(Server):
    """``python -m mlx_vlm_moxin server`` instead of the stock command."""

    command = ("mlx_vlm_moxin", "server")


def test_the_server_serves_what_it_quantised_on_the_fly(converted, tmp_path):
    question = user_message(MESSAGES[0], image_path("photo"))
    with MoxinServer(HF_CHECKPOINT, tmp_path / "server.log", "--quantize", "4") as server:
        content = server.answer(question, max_tokens=MAX_TOKENS)
    assert content.strip() == stock_answer(converted(4)) != stock_answer(HF_CHECKPOINT)


def test_a_failed_conversion_ends_with_its_exit_status(tmp_path):
    target = tmp_path / "moxin"
    result = run("convert", "--hf-path", tmp_path / "nowhere", "--mlx-path", target)
    assert_one_line(result, "nowhere")


@pytest.mark.parametrize(
    ("command", "model", "part"),
    [
        ("generate", "--model=./nope", "./nope is neither a local directory nor a Hub repository"),
        ("train", "--model=~/nope", "~/nope is neither a local directory nor a Hub repository"),
        ("generate", "--model={broken}", "config.json is not valid JSON"),
    ],
)
def test_a_model_that_is_not_there_or_broken_is_named(command, model, part, tmp_path):
    (tmp_path / "config.json").write_text("{")
    result = run(command, model.format(broken=tmp_path))
    assert_one_line(result, part)


def test_a_tilde_in_model_is_the_home_directory():
    result = run_module(
        "mlx_vlm_moxin",
        *("generate", f"--model=~/{HF_CHECKPOINT.name}", "--quantize", "4", "--top-k", "-1"),
        env={"HOME": str(HF_CHECKPOINT.parent)},
    )
    # The model was found, and its options are checked before it is quantised.
    assert_one_line(result, "--top-k -1 cannot be used")
