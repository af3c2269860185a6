"""Output of a panic in the tokenizers library is hidden; all other output is shown."""

import os

import pytest
from source_checkpoints import break_tokenizer, copy_checkpoint
from support import HF_CHECKPOINT, run_module

from mlx_vlm_moxin.checkpoints.native_output import native_errors_dropped


def test_what_is_written_appears_after_the_block(capfd):
    with native_errors_dropped():
        os.write(2, b"from a library\n")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "from a library\n"


def test_what_is_written_before_an_error_is_dropped(capfd):
    def panic() -> None:
        os.write(2, b"panicked\n")
        raise KeyError

    with pytest.raises(KeyError), native_errors_dropped():
        panic()
    assert capfd.readouterr().err == ""
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "later\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["mlx_vlm_moxin", "convert", "--mlx-path", "out", "--quiet"],
        ["mlx_vlm.generate", "--prompt", "a"],
    ],
    ids=["convert", "generate"],
)
def test_a_panic_is_one_line(tmp_path, arguments):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
    break_tokenizer(directory)
    environment = {"RUST_BACKTRACE": "1"}
    result = run_module(*arguments, "--model", directory, cwd=tmp_path, env=environment)
    assert result.returncode == 1
    errors = [
        line for line in result.stderr.splitlines() if "mlx_vlm.generate` directly" not in line
    ]
    assert len(errors) == 1, result.stderr
    assert errors[0].startswith("error: The tokenizer in ")
