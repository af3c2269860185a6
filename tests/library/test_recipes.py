"""The guide's recipes for other models, run on small random checkpoints of them."""

import re
import shlex
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from small_models import write_glm4_moe, write_qwen3_asr, write_sound
from support import run_module

GUIDE = Path(__file__).parents[2] / "docs" / "quantisation.md"


def blocks(language: str) -> list[str]:
    """The guide's code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def run_recipe(package: str, directory: Path, names: dict[str, str]) -> list[str]:
    """Run the guide's commands of ``package`` with other names; their standard outputs."""
    outputs = []
    for block in blocks("bash"):
        for command in block.replace("\\\n", " ").splitlines():
            words = [names.get(word, word) for word in shlex.split(command)]
            if words[:2] == ["python", "-m"] and words[2].startswith(package):
                result = run_module(*words[2:], cwd=directory)
                assert result.returncode == 0, result.stderr
                outputs.append(result.stdout)
    return outputs


def packed_layers(directory: Path) -> set[str]:
    weights = mx.load(str(directory / "model.safetensors"))
    return {name.removesuffix(".scales") for name in weights if name.endswith(".scales")}


@pytest.fixture(scope="module")
def qwen3_asr(tmp_path_factory):
    """Folder with the checkpoint in ``source`` and the results of the guide's commands."""
    folder = tmp_path_factory.mktemp("qwen3_asr")
    write_qwen3_asr(folder / "source")
    write_sound(folder / "speech.wav")
    assert len(run_recipe("mlx_audio", folder, {"Qwen/Qwen3-ASR-1.7B": "source"})) == 2
    return folder


@pytest.mark.slow
def test_qwen3_asr_answers_with_a_quantised_text_decoder(qwen3_asr):
    text = (qwen3_asr / "transcript.txt").read_text()
    assert re.fullmatch("[a-z]+", text)
    packed = packed_layers(qwen3_asr / "qwen3-asr-8bit")
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {name.rpartition(".")[2] for name in packed} == {*names, "embed_tokens"}


@pytest.mark.slow
def test_qwen3_asrs_audio_encoder_keeps_its_full_precision_weights(qwen3_asr):
    source = mx.load(str(qwen3_asr / "source" / "model.safetensors"))
    saved = mx.load(str(qwen3_asr / "qwen3-asr-8bit" / "model.safetensors"))
    audio = [name for name in saved if name.startswith("audio_tower.")]
    assert len(audio) > 30
    for name in audio:
        value = source[f"thinker.{name}"]
        value = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
        assert saved[name].dtype == mx.bfloat16
        assert mx.array_equal(saved[name], value)


@pytest.mark.slow
def test_the_guides_predicate_leaves_out_the_audio_encoder_that_stock_quantises(
    qwen3_asr, monkeypatch, capsys
):
    from mlx_audio.stt import load

    monkeypatch.chdir(qwen3_asr)
    everything = load("source")
    nn.quantize(everything, 32, 8)
    assert hasattr(everything.audio_tower.layers[0].fc1, "bits")
    (snippet,) = [block for block in blocks("python") if "audio_tower" in block]
    namespace = {}
    exec(snippet.replace("Qwen/Qwen3-ASR-1.7B", "source"), namespace)
    model = namespace["model"]
    quantised = {path for path, module in model.named_modules() if hasattr(module, "bits")}
    assert not [path for path in quantised if path.startswith("audio_tower")]
    assert "model.layers.0.self_attn.q_proj" in quantised
    assert re.fullmatch("[a-z]+", capsys.readouterr().out.strip())


def test_glm4_moe_answers_at_3_bits(tmp_path):
    write_glm4_moe(tmp_path / "source")
    outputs = run_recipe("mlx_lm", tmp_path, {"zai-org/GLM-4.5-Air": "source"})
    assert "3." in re.search(r"Quantized model with (\S+) bits", outputs[0])[1][:2]
    assert re.search("^[a-z]{8,}$", outputs[1], re.MULTILINE)
    weights = mx.load(str(tmp_path / "glm-4.5-air-3bit" / "model.safetensors"))
    experts = weights["model.layers.1.mlp.switch_mlp.gate_proj.weight"]
    assert (experts.shape, experts.dtype) == ((4, 64, 128 * 3 // 32), mx.uint32)
    # The router decides which experts run: stock leaves it alone.
    assert "model.layers.1.mlp.gate.scales" not in weights
