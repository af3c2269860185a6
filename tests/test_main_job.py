"""Generating and converting with mlx-vlm's stock commands, in clean processes."""

import json
import shutil

import mlx.core as mx
import pytest
from support import GOLDENS, HF_CHECKPOINT, MESSAGES, image_path, run_module

TOKENS = str(GOLDENS["new_tokens"])


def generate(model, *arguments: str) -> str:
    """Standard output of ``python -m mlx_vlm.generate``, which must succeed."""
    result = run_module("mlx_vlm.generate", "--model", model, "--max-tokens", TOKENS, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout.split("instead.\n", 1)[-1].rstrip("\n")


def convert(path, *arguments: str) -> dict:
    """Convert the reference checkpoint by the stock command; returns its config.json."""
    source = ["--hf-path", str(HF_CHECKPOINT), "--mlx-path", str(path)]
    result = run_module("mlx_vlm.convert", *source, *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads((path / "config.json").read_text(encoding="utf-8"))


def saved(path) -> dict[str, mx.array]:
    weights = {}
    for file in path.glob("*.safetensors"):
        weights.update(mx.load(str(file)))
    return weights


@pytest.mark.parametrize(("name", "index"), [("photo", 0), ("tall", 1), ("rgba", 2)])
def test_generate_prints_the_references_answer(fp32_checkpoint, name, index):
    output = generate(fp32_checkpoint, "--image", image_path(name), "--prompt", MESSAGES[index])
    assert output == GOLDENS["generate"]["hf"][name][index]["text"]


def test_the_source_checkpoint_answers_before_any_conversion():
    output = generate(HF_CHECKPOINT, "--image", image_path("photo"), "--prompt", MESSAGES[0])
    assert output


def test_a_prompt_without_a_picture_is_answered(fp32_checkpoint):
    assert generate(fp32_checkpoint, "--prompt", MESSAGES[0])


@pytest.mark.parametrize("options", [["--q-bits", "8"], ["--q-bits", "4"]])
def test_convert_then_generate_with_the_model_called_moxin(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    config = convert(tmp_path / "moxin", "-q", *options)
    assert config["quantization"]["bits"] == int(options[1])
    first = generate("moxin", "--image", image_path("photo"), "--prompt", MESSAGES[0])
    again = generate("moxin", "--image", image_path("photo"), "--prompt", MESSAGES[0])
    assert first == again != ""


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [8, 4])
def test_convert_quantises_what_fits_the_group_size_and_nothing_else(tmp_path, bits, group_size):
    options = ["-q", "--q-bits", str(bits), "--q-group-size", str(group_size)]
    config = convert(tmp_path / "moxin", *options)
    assert config["quantization"]["group_size"] == group_size
    weights = saved(tmp_path / "moxin")
    packed = {name.removesuffix(".scales") for name in weights if name.endswith(".scales")}
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    names += ("mlp.gate_proj", "mlp.up_proj")  # down_proj has 72 inputs: no group fits
    layers = [f"language_model.model.layers.{i}.{name}" for i in range(4) for name in names]
    assert packed == {*layers, "language_model.lm_head"}
    kept = [n for n in weights if not n.startswith(tuple(packed))]
    assert {weights[name].dtype for name in kept} == {mx.bfloat16}
    assert generate(tmp_path / "moxin", "--image", image_path("tall"), "--prompt", MESSAGES[1])


def test_a_converted_checkpoint_converts_again(tmp_path, fp32_checkpoint):
    result = run_module(
        "mlx_vlm.convert", "--hf-path", str(fp32_checkpoint), "--mlx-path", str(tmp_path / "again")
    )
    assert result.returncode == 0, result.stderr
    first, second = saved(fp32_checkpoint), saved(tmp_path / "again")
    assert first.keys() == second.keys()
    assert all(mx.array_equal(first[name], second[name]) for name in first)


def test_the_prompt_template_travels_with_a_converted_checkpoint(fp32_checkpoint):
    assert "In: " in (fp32_checkpoint / "chat_template.jinja").read_text(encoding="utf-8")


def test_an_unquoted_prompt_is_one_question(fp32_checkpoint):
    words = MESSAGES[0].split()
    output = generate(fp32_checkpoint, "--image", image_path("photo"), "--prompt", *words)
    assert output == GOLDENS["generate"]["hf"]["photo"][0]["text"]


def test_the_module_of_this_package_runs_the_same_command(fp32_checkpoint):
    arguments = ["--model", fp32_checkpoint, "--image", image_path("photo"), "--max-tokens", TOKENS]
    result = run_module("mlx_vlm_moxin", "generate", *arguments, "--prompt", MESSAGES[0])
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == GOLDENS["generate"]["hf"]["photo"][0]["text"]


def test_a_checkpoint_of_type_moxin_answers_as_its_source_does(tmp_path, fp32_checkpoint, model):
    path = shutil.copytree(fp32_checkpoint, tmp_path / "moxin")
    config = {**model.config.to_dict(), "timm_model_ids": None, "model_path": None}
    config["model_type"] = "moxin"
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    output = generate(path, "--image", image_path("photo"), "--prompt", MESSAGES[0])
    assert output == GOLDENS["generate"]["hf"]["photo"][0]["text"]
