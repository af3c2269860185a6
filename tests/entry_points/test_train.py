"""LoRA and QLoRA by stock ``mlx_vlm.train``: learned, loaded, fused, converted again."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from datasets import Dataset, Features, Image, Value
from mlx_vlm import convert, load
from mlx_vlm.trainer.peft import get_peft_model
from mlx_vlm.trainer.peft.utils import save_adapter
from support import GOLDENS, image_path, run_module
from training import LEARNED, PROMPT, answers, conversations, losses, train, write_rows

from mlx_vlm_moxin.fuse import fuse_adapter, rounding

SETTINGS = ("--learning-rate", "0.05", "--iters", "40", "--train-on-completions")


def fuse(model: Path, adapter: Path, target: Path, *options: str) -> Path:
    paths = ["--model", model, "--adapter-path", adapter, "--save-path", target]
    result = run_module("mlx_vlm_moxin.fuse", *paths, *options)
    assert result.returncode == 0, result.stderr
    assert "28 layers fused" in result.stdout
    return target


def dequantize(layer: nn.QuantizedLinear) -> mx.array:
    settings = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    return mx.dequantize(layer.weight, layer.scales, layer.biases, **settings)


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory) -> Path:
    """mlx-vlm's own format, pictures by path."""
    return write_rows(tmp_path_factory.mktemp("jsonl"), conversations())


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> Path:
    """A data set in Hugging Face's format, pictures inside."""
    folder = tmp_path_factory.mktemp("parquet")
    question = PROMPT["message"]
    rows = [
        {"image": image_path(name), "question": question, "answer": answer}
        for name, answer in LEARNED.items()
    ]
    text = Value("string")
    features = Features({"image": Image(), "question": text, "answer": text})
    Dataset.from_list(rows, features=features).to_parquet(folder / "train.parquet")
    return folder


def test_lora_learns_fuses_and_converts(fp32_checkpoint, jsonl, tmp_path):
    learned = losses(train(fp32_checkpoint, tmp_path / "adapter", "--data", jsonl, *SETTINGS))
    assert learned[-1] < learned[0] / 20
    options = ["--model", fp32_checkpoint, "--adapter-path", tmp_path / "adapter"]
    options += ["--image", image_path("photo"), "--prompt", PROMPT["message"]]
    result = run_module("mlx_vlm", "generate", *options, "--max-tokens", "8")
    assert result.stdout == "Yes\n", result.stderr
    adapted = load(str(fp32_checkpoint), adapter_path=str(tmp_path / "adapter"))
    assert answers(*adapted) == LEARNED
    base = answers(*load(str(fp32_checkpoint)))
    assert all(GOLDENS["generate"]["hf"][n][0]["text"].startswith(base[n][:4]) for n in LEARNED)
    fused = fuse(fp32_checkpoint, tmp_path / "adapter", tmp_path / "fused")
    assert answers(*load(str(fused))) == LEARNED
    convert(str(fused), str(tmp_path / "moxin"), quantize=True, trust_remote_code=False)
    assert answers(*load(str(tmp_path / "moxin"))) == LEARNED


@pytest.mark.slow
def test_qlora_learns_and_fuses(fp32_checkpoint, parquet, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    options = {"quantize": True, "q_bits": 4, "q_group_size": 32, "trust_remote_code": False}
    convert(str(fp32_checkpoint), str(base), **options)
    learned = losses(train(base, adapter, "--dataset", parquet, *SETTINGS))
    assert learned[-1] < learned[0] / 20
    model, processor = load(str(base), adapter_path=str(adapter))
    assert answers(model, processor) == LEARNED
    assert fuse_adapter(model) == 28
    assert isinstance(model.layers[0].self_attn.q_proj, nn.QuantizedLinear)
    fused, processor = load(str(fuse(base, adapter, tmp_path / "fused", "--dequantize")))
    assert answers(fused, processor) == LEARNED
    assert isinstance(fused.layers[0].self_attn.q_proj, nn.Linear)
    assert isinstance(fused.language_model.lm_head, nn.QuantizedLinear)


def test_fusing_says_what_quantising_again_does_to_the_adapter(fp32_checkpoint, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter.safetensors"
    options = {"quantize": True, "q_bits": 4, "q_group_size": 32, "trust_remote_code": False}
    convert(str(fp32_checkpoint), str(base), **options)
    found = {}
    for size in (1e-3, 1.0):
        model = get_peft_model(load(str(base))[0], rank=2, alpha=2, verbose=False)
        for layer in model.layers:
            layer.self_attn.q_proj.lora_b = mx.full(layer.self_attn.q_proj.lora_b.shape, size)
        found[size] = rounding(model)
        layer = model.layers[0].self_attn.q_proj
        update = layer.scale * layer.lora_b.T @ layer.lora_a.T
        moved = layer.fuse(True).weight - dequantize(layer.linear)
        assert mx.allclose(moved, update, atol=1e-6)
        save_adapter(model, adapter)
    assert found[1e-3].update < found[1e-3].error < 0.2
    assert found[1.0].update > found[1.0].error
    assert found[1.0].update == pytest.approx(1e3 * found[1e-3].update, rel=0.2)
    assert rounding(load(str(fp32_checkpoint))[0]) is None

    save_adapter(get_peft_model(load(str(base))[0], rank=2, verbose=False), adapter)
    paths = ["--model", base, "--adapter-path", adapter, "--save-path", tmp_path / "fused"]
    result = run_module("mlx_vlm_moxin", "fuse", *paths)
    assert "The adapter moved the weights by 0.000 of their size" in result.stdout
    assert "warning: quantising again outweighs the adapter" in result.stderr
    assert "--dequantize" in result.stderr


def test_fusing_refuses_an_existing_target_and_a_missing_adapter(fp32_checkpoint, tmp_path):
    for target, part in ((tmp_path, "exists"), (tmp_path / "new", "does not exist")):
        options = ["--adapter-path", tmp_path / "none", "--save-path", target]
        result = run_module("mlx_vlm_moxin.fuse", "--model", fp32_checkpoint, *options)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert part in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "new").exists()
