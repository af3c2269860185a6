"""``fuse``: an unreadable adapter gives one line, and a signal leaves no files."""

import os
import signal
import subprocess
import sys

import mlx.core as mx
import mlx_vlm
import pytest
from huggingface_hub import ModelCard
from mlx_vlm.trainer.peft import get_peft_model
from mlx_vlm.trainer.peft.utils import save_adapter
from support import HF_CHECKPOINT
from warm_processes import command as warm_command
from warm_processes import offline

from mlx_vlm_moxin.fuse import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapter")
    model, _ = mlx_vlm.load(str(HF_CHECKPOINT))
    model = get_peft_model(model, rank=2, alpha=1, verbose=False)
    save_adapter(model, str(directory / "adapters.safetensors"))
    return directory


@pytest.fixture
def adapter(trained, tmp_path):
    (tmp_path / "adapter").mkdir()
    for name in ("adapters.safetensors", "adapter_config.json"):
        (tmp_path / "adapter" / name).write_bytes((trained / name).read_bytes())
    return tmp_path / "adapter"


def arguments(adapter) -> list[str]:
    target = str(adapter.parent / "fused")
    paths = ["--adapter-path", str(adapter), "--save-path", target]
    return ["fuse", "--model", str(HF_CHECKPOINT), *paths]


def test_the_card_calls_it_a_fine_tune(adapter, monkeypatch):
    monkeypatch.setattr(sys, "argv", arguments(adapter))
    assert main() == 0
    text = ModelCard.load(adapter.parent / "fused" / "README.md").text
    assert "An adapter was fused into weights from a local directory" in text


def change_config(adapter, old, new) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(path.read_text().replace(old, new))


def change_tensors(adapter, rename) -> None:
    """Rename the tensors of the adapter; those without a new name are removed."""
    path = str(adapter / "adapters.safetensors")
    tensors = {rename(name): value for name, value in mx.load(path).items()}
    mx.eval(tensors.values())
    mx.save_safetensors(path, {name: value for name, value in tensors.items() if name})


@pytest.mark.parametrize(
    "damage",
    [
        lambda adapter: (adapter / "adapters.safetensors").write_bytes(b""),
        lambda adapter: (adapter / "adapters.safetensors").write_bytes(b"<html>"),
        lambda adapter: (adapter / "adapters.safetensors").write_bytes(
            (adapter / "adapters.safetensors").read_bytes()[:300]
        ),
        lambda adapter: (adapter / "adapter_config.json").write_text("["),
        lambda adapter: (adapter / "adapter_config.json").write_text("3"),
        lambda adapter: (adapter / "adapter_config.json").unlink(),
        lambda adapter: change_config(adapter, '"rank": 2', '"rank": "x"'),
        lambda adapter: change_config(adapter, '"rank": 2', '"rank": 4'),
        lambda adapter: change_tensors(adapter, lambda name: name.replace("q_proj", "x_proj")),
        lambda adapter: change_tensors(adapter, lambda name: None if "q_proj" in name else name),
        lambda adapter: change_config(adapter, '"dropout": 0.1', '"dropout": 7'),
    ],
    ids=[
        "empty",
        "html",
        "cut",
        "no json",
        "number",
        "no config",
        "text",
        "rank",
        "unknown",
        "missing",
        "dropout",
    ],
)
def test_an_adapter_that_cannot_be_used_is_one_line(adapter, damage, monkeypatch, capsys):
    damage(adapter)
    monkeypatch.setattr(sys, "argv", arguments(adapter))
    assert main() == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: The adapter in {adapter} cannot be used (")
    assert error.count("\n") == 1
    assert not (adapter.parent / "fused").exists()


# Prints a line and waits while it writes.
WAIT = """
import sys, time
from mlx_vlm_moxin import fuse
from mlx_vlm_moxin.library import save
def wait(*arguments):
    print("waiting", flush=True)
    time.sleep(60)
save.write_weights = wait
sys.exit(fuse.main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_half_written(adapter, number):
    environment = offline(os.environ)
    process = subprocess.Popen(
        warm_command("-c", WAIT, *arguments(adapter)[1:], environment=environment),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    target = adapter.parent / "fused"
    assert error == f"error: stopped; nothing incomplete is left at {target}\n"
    assert [path.name for path in adapter.parent.iterdir()] == ["adapter"]
