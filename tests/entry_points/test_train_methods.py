"""Each training method of ``mlx_vlm.train`` besides LoRA teaches Moxin something."""

import json

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_vlm import load
from mlx_vlm.trainer.common.model import prepare_model_for_training
from support import HF_CHECKPOINT, image_path, run_module
from training import (
    LEARNED,
    PROMPT,
    answers,
    conversations,
    log_probability,
    losses,
    train,
    write_rows,
)

from mlx_vlm_moxin.fuse import fuse_adapter

OTHER = {"photo": "No", "tall": "Yes"}
SUPERVISED = ("--train-on-completions", "--iters", "40", "--learning-rate")


@pytest.fixture
def data(tmp_path):
    """Conversations for supervised training."""
    return write_rows(tmp_path / "data", conversations())


def adapted(checkpoint, adapter):
    """Model and processor, the model with ``adapter``."""
    return load(str(checkpoint), adapter_path=str(adapter))


@pytest.mark.slow
def test_dora_learns_and_fuses(fp32_checkpoint, data, tmp_path):
    options = ["--train-type", "dora", "--data", data, *SUPERVISED, "0.05"]
    learned = losses(train(fp32_checkpoint, tmp_path / "adapter", *options))
    assert learned[-1] < learned[0] / 20
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["fine_tune_type"] == "dora"
    model, processor = adapted(fp32_checkpoint, tmp_path / "adapter")
    assert answers(model, processor) == LEARNED
    assert fuse_adapter(model) == 28
    assert isinstance(model.layers[0].self_attn.q_proj, nn.Linear)
    assert answers(model, processor) == LEARNED


@pytest.mark.parametrize(
    "bits",
    [
        pytest.param(
            bits,
            marks=pytest.mark.xfail(
                32 % bits != 0,
                raises=ValueError,
                strict=True,
                reason="mlx-vlm's DoRA takes a word of 32 bits for 32 // bits whole weights",
            ),
        )
        for bits in (8, 6, 4, 3)
    ],
)
def test_a_new_dora_adapter_on_a_quantised_model_changes_nothing(bits):
    model, _ = load(str(HF_CHECKPOINT))
    model.set_dtype(mx.float32)
    model.quantize(group_size=32, bits=bits)
    ids = mx.array([[1, 5, 9]])
    expected = model(ids).logits
    prepare_model_for_training(model, train_type="dora", verbose=False)
    # A new adapter changes nothing.
    assert mx.allclose(model(ids).logits, expected, atol=1e-3)


def changed_parts(checkpoint, trained: dict[str, mx.array]) -> set[str]:
    """The model's parts with a weight in ``trained`` that differs from the checkpoint's."""
    (file,) = checkpoint.glob("*.safetensors")
    stored = mx.load(str(file))
    names = [name for name in trained if name in stored]
    return {name.split(".")[0] for name in names if not mx.array_equal(trained[name], stored[name])}


@pytest.mark.slow
def test_full_fine_tuning_learns_and_fuses(fp32_checkpoint, data, tmp_path):
    options = ["--full-finetune", "--data", data, *SUPERVISED, "0.003"]
    learned = losses(train(fp32_checkpoint, tmp_path / "weights", *options))
    assert learned[-1] < learned[0] / 20
    trained = mx.load(str(tmp_path / "weights" / "adapters.safetensors"))
    everything = {"vision_tower", "multi_modal_projector", "language_model"}
    assert changed_parts(fp32_checkpoint, trained) == everything
    assert answers(*adapted(fp32_checkpoint, tmp_path / "weights")) == LEARNED
    paths = ["--adapter-path", tmp_path / "weights", "--save-path", tmp_path / "whole"]
    result = run_module("mlx_vlm_moxin.fuse", "--model", fp32_checkpoint, *paths)
    assert result.returncode == 0, result.stderr
    assert answers(*load(str(tmp_path / "whole"))) == LEARNED


@pytest.mark.slow
def test_an_adapter_can_train_the_towers_and_the_projector(fp32_checkpoint, data, tmp_path):
    options = ["--train-vision", "--data", data, *SUPERVISED, "0.02"]
    learned = losses(train(fp32_checkpoint, tmp_path / "adapter", *options))
    assert learned[-1] < learned[0] / 20
    trained = mx.load(str(tmp_path / "adapter" / "adapters.safetensors"))
    parts = {"vision_tower", "multi_modal_projector"}
    assert changed_parts(fp32_checkpoint, trained) == parts
    assert answers(*adapted(fp32_checkpoint, tmp_path / "adapter")) == LEARNED


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_loss(fp32_checkpoint, data, tmp_path):
    options = ["--full-finetune", "--data", data, *SUPERVISED, "0.003", "--iters", "10"]
    plain = losses(train(fp32_checkpoint, tmp_path / "plain", *options))
    saving = losses(train(fp32_checkpoint, tmp_path / "saving", "--grad-checkpoint", *options))
    assert plain == pytest.approx(saving, rel=1e-3)


def margins(model, processor) -> list[float]:
    """Log-probability of the chosen answer less that of the rejected one, for each picture."""
    return [
        log_probability(model, processor, name, LEARNED[name])
        - log_probability(model, processor, name, OTHER[name])
        for name in LEARNED
    ]


@pytest.mark.parametrize("algorithm", ["orpo", pytest.param("dpo", marks=pytest.mark.slow)])
def test_preference_training_prefers_the_chosen_answers(
    fp32_checkpoint, model, processor, tmp_path, algorithm
):
    rows = [
        {
            "images": [image_path(name)],
            "prompt": PROMPT["message"],
            "chosen": LEARNED[name],
            "rejected": OTHER[name],
        }
        for name in LEARNED
    ]
    options = ["--algorithm", algorithm, "--data", write_rows(tmp_path / "data", rows)]
    options += ["--iters", "30", "--learning-rate", "0.1"]
    learned = losses(train(fp32_checkpoint, tmp_path / "adapter", *options))
    assert learned[-1] < learned[0] / 5
    # An answer that is the same for both pictures makes one of their margins negative.
    assert min(margins(model, processor)) < 0
    assert min(margins(*adapted(fp32_checkpoint, tmp_path / "adapter"))) > 3


@pytest.mark.slow
def test_grpo_makes_the_right_answers_likelier(fp32_checkpoint, data, tmp_path):
    # An answer that never occurs gets no reward, so the right answers are first made likely.
    supervised = ["--data", data, *SUPERVISED, "0.05", "--iters", "7"]
    train(fp32_checkpoint, tmp_path / "first", *supervised)
    rows = [
        {"images": [image_path(name)], "prompt": PROMPT["message"], "answer": answer}
        for name, answer in LEARNED.items()
    ]
    options = ["--algorithm", "grpo", "--data", write_rows(tmp_path / "prompts", rows)]
    options += ["--resume-adapter-file", tmp_path / "first", "--learning-rate", "0.005"]
    options += ["--iters", "20", "--group-size", "4", "--max-completion-length", "2"]
    options += ["--temperature", "1", "--top-p", "1", "--top-k", "0", "--beta", "0.01"]
    reports = train(fp32_checkpoint, tmp_path / "adapter", *options)
    assert all(0 < report["train_reward_mean"] <= 1 for report in reports)
    right = [
        [log_probability(*loaded, name, LEARNED[name]) for name in LEARNED]
        for loaded in (adapted(fp32_checkpoint, tmp_path / path) for path in ("first", "adapter"))
    ]
    assert all(new > old for old, new in zip(*right))
