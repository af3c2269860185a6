"""Training that fails: one line, and the last finite weights are kept."""

import sys

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten
from mlx_vlm import convert, load
from mlx_vlm.train import main
from mlx_vlm.trainer.api import Trainer
from mlx_vlm.trainer.common.callbacks import TrainingCallback
from mlx_vlm.trainer.peft import get_peft_model
from mlx_vlm.trainer.vlm.config import VLMTrainingArgs
from support import HF_CHECKPOINT, run_module
from training import conversations, write_rows

from mlx_vlm_moxin.plugin import training
from mlx_vlm_moxin.plugin.training import TrainingError


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"), conversations())


@pytest.fixture(scope="module")
def float16_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("float16") / "checkpoint"
    convert(str(HF_CHECKPOINT), str(path), dtype="float16", trust_remote_code=False)
    return path


def options(checkpoint, rows, output, *others: str) -> list[str]:
    every = ["--steps-per-report", "1", "--steps-per-save", "1", "--iters", "3"]
    paths = ["--model", checkpoint, "--data", rows, "--output-path", output]
    return [*map(str, paths), *every, *others]


@pytest.mark.parametrize("what", [["--train-vision"], ["--full-finetune"]])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_float16_weights_are_refused_where_eps_is_0(
    float16_checkpoint, rows, tmp_path, what, optimizer, monkeypatch
):
    arguments = options(float16_checkpoint, rows, tmp_path / "out", "--optimizer", optimizer, *what)
    monkeypatch.setattr(sys, "argv", ["mlx_vlm.train", *arguments])
    with pytest.raises(TrainingError, match=r"float16 .* eps of 1e-08 is 0 .*--dtype bfloat16"):
        main()
    assert not (tmp_path / "out").exists()


def test_what_is_refused_would_have_given_nan(float16_checkpoint, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "check_precision", lambda model, optimizer: None)
    arguments = options(float16_checkpoint, rows, tmp_path / "out", "--train-vision")
    with pytest.raises(TrainingError, match="is no longer finite; nothing has been saved"):
        main(arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("others", [[], ["--train-vision", "--optimizer", "sgd"]])
def test_an_adapter_and_other_optimizers_train_a_float16_checkpoint(
    float16_checkpoint, rows, tmp_path, others
):
    main(options(float16_checkpoint, rows, tmp_path / "out", *others))
    weights = mx.load(str(tmp_path / "out" / "adapters.safetensors"))
    assert all(mx.all(mx.isfinite(value)).item() for value in weights.values())


def test_the_command_ends_with_one_line_and_status_1(rows, tmp_path):
    arguments = options(HF_CHECKPOINT, rows, tmp_path / "out", "--learning-rate", "1e30")
    result = run_module("mlx_vlm.train", *arguments, "--steps-per-save", "100")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: Training ended at iteration 2: train_loss is nan; nothing has")
    assert not (tmp_path / "out").exists()


class Recorder(TrainingCallback):
    """Losses and, at each report, the adapter's weights."""

    def __init__(self):
        self.model, self.losses, self.weights = None, {}, {}

    def on_train_loss_report(self, train_info):
        self.losses[train_info["iteration"]] = train_info["train_loss"]
        self.weights[train_info["iteration"]] = tree_flatten(self.model.trainable_parameters())


@pytest.mark.parametrize("steps_per_save", [1, 100])
def test_the_file_holds_the_last_weights_that_gave_a_finite_loss(tmp_path, steps_per_save):
    model, processor = load(str(HF_CHECKPOINT))
    get_peft_model(model, rank=2, alpha=2, verbose=False)
    path = tmp_path / "adapters.safetensors"
    args = VLMTrainingArgs(
        iters=9, steps_per_report=1, steps_per_save=steps_per_save, adapter_file=str(path)
    )
    recorder = Recorder()
    recorder.model = model
    rate = optim.step_decay(1e-3, 1e30, 4)  # 1e27 from the fifth step on
    trainer = Trainer(
        model,
        args,
        optimizer=optim.SGD(rate),
        train_dataset=conversations(),
        processing_class=processor,
        training_callback=recorder,
    )
    with pytest.raises(TrainingError) as error:
        trainer.train()
    last = max(recorder.losses)
    assert f"{path} holds the weights of iteration {last - 1}" in str(error.value)
    saved = mx.load(str(path))
    for name, value in recorder.weights[last - 1]:
        assert mx.array_equal(saved[name], value)
    assert all(mx.all(mx.isfinite(value)).item() for value in saved.values())


def test_a_validation_loss_of_nan_ends_training_too(tmp_path):
    guard = training.Guard(load(str(HF_CHECKPOINT), lazy=True)[0], None, "adapters.safetensors")
    with pytest.raises(TrainingError, match="iteration 7: val_loss is nan"):
        guard.on_val_loss_report({"iteration": 7, "val_loss": float("nan")})
