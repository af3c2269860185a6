"""Conversions of every source give the reference's logits and tokens."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm import apply_chat_template, generate, load
from mlx_vlm import convert as upstream_convert
from mlx_vlm.convert import QUANT_RECIPES
from mlx_vlm.models.moxin.quantization import AFFINE_BITS
from source_checkpoints import NATIVE_FILES, converted, load_weights, write_ominix
from support import (
    ARRAYS,
    GOLDENS,
    HF_CHECKPOINT,
    LOGITS_TOLERANCE,
    PROMPTS,
    image_path,
)

from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.conversion.convert import convert
from mlx_vlm_moxin.conversion.source_files import SourceFiles


def check_run(directory, run: str) -> None:
    """Compare logits, greedy tokens and text of a float32 conversion with the reference's."""
    model, processor = load(str(directory))
    for name, answers in GOLDENS["generate"][run].items():
        for index, prompt in enumerate(PROMPTS):
            text = apply_chat_template(processor, model.config, prompt["message"], num_images=1)
            assert text == prompt["prompt"]
            inputs = processor(text, [image_path(name)])
            logits = model(inputs["input_ids"], inputs["pixel_values"]).logits[0]
            close = {"rtol": 0, "atol": LOGITS_TOLERANCE}
            last = ARRAYS[f"{run}/logits_last/{name}/{index}"]
            np.testing.assert_allclose(np.array(logits[-1]), last, **close)
            if f"{run}/logits/{name}/{index}" in ARRAYS:
                every = ARRAYS[f"{run}/logits/{name}/{index}"]
                np.testing.assert_allclose(np.array(logits), every, **close)
            result = generate(
                model, processor, text, [image_path(name)], max_tokens=GOLDENS["new_tokens"]
            )
            assert result.token_ids == answers[index]["tokens"]
            assert result.text == answers[index]["text"]


def same_weights(first, second) -> bool:
    a, b = load_weights(first), load_weights(second)
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and mx.array_equal(a[k], b[k]) for k in a
    )


class TestReference:
    def test_a_native_run_gives_the_reference_outputs(self, tmp_path):
        check_run(converted(NATIVE_FILES, tmp_path / "x"), "native")

    def test_an_hf_converted_checkpoint_gives_the_reference_outputs(self, tmp_path):
        check_run(converted(HF_CHECKPOINT, tmp_path / "x"), "hf")

    @pytest.mark.slow
    def test_an_ominix_export_gives_the_reference_outputs(self, tmp_path):
        source = write_ominix(tmp_path / "source", bits=None)
        check_run(converted(source, tmp_path / "x"), "hf")

    @pytest.mark.slow
    def test_a_stock_conversion_gives_the_reference_outputs(self, tmp_path):
        upstream_convert(str(HF_CHECKPOINT), str(tmp_path / "stock"), trust_remote_code=False)
        check_run(converted(tmp_path / "stock", tmp_path / "x"), "hf")

    @pytest.mark.slow
    def test_a_conversion_converted_again_gives_the_reference_outputs(self, tmp_path):
        first = converted(HF_CHECKPOINT, tmp_path / "first", QuantizeOptions())
        check_run(converted(first, tmp_path / "x"), "hf")


def test_packed_weights_of_ominix_are_carried_over_bit_for_bit(tmp_path):
    source = write_ominix(tmp_path / "source")
    result = converted(source, tmp_path / "x", QuantizeOptions())
    ours = load_weights(result)
    packed = 0
    for name, value in load_weights(source).items():
        if name.endswith((".inner.weight", ".scales", ".biases")):
            found = ours[name.replace(".inner.", ".")]
            assert found.dtype == value.dtype
            assert mx.array_equal(found, value)
            packed += 1
    assert packed == 3 * 25
    config = json.loads((result / "config.json").read_text())
    assert config["quantization"] == {"group_size": 64, "bits": 8, "mode": "affine"}
    quantised = QuantizeOptions(quantize=True, q_bits=8)
    assert same_weights(result, converted(HF_CHECKPOINT, tmp_path / "y", quantised))


# One of each kind in the default run.
COMMON = (
    {"q_bits": 4},
    {"q_group_size": 32},
    {"q_mode": "mxfp4"},
    {"quant_predicate": "mixed_4_6"},
)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings, marks=() if settings in COMMON else pytest.mark.slow)
        for settings in (
            *({"q_bits": bits} for bits in AFFINE_BITS),
            *({"q_group_size": size} for size in (32, 128)),
            *({"q_mode": mode} for mode in ("mxfp4", "nvfp4", "mxfp8")),
            *({"quant_predicate": recipe} for recipe in QUANT_RECIPES),
        )
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_quantisation_loads_runs_and_is_a_source_again(tmp_path, settings):
    options = QuantizeOptions(quantize=True, **settings)
    result = converted(HF_CHECKPOINT, tmp_path / "x", options)
    model, processor = load(str(result))
    inputs = processor(PROMPTS[0]["prompt"], [image_path("photo")])
    assert mx.isfinite(model(**inputs_of(inputs)).logits).all().item()
    again = converted(result, tmp_path / "again", QuantizeOptions())
    assert same_weights(result, again)
    assert (result / "config.json").read_text() == (again / "config.json").read_text()


def inputs_of(inputs):
    return {name: inputs[name] for name in ("input_ids", "pixel_values")}


class TestOwnOutputAgain:
    @pytest.fixture
    def eight_bits(self, tmp_path):
        options = QuantizeOptions(quantize=True, q_bits=8)
        return converted(HF_CHECKPOINT, tmp_path / "8bit", options)

    def test_a_quantised_conversion_can_be_dequantised(self, tmp_path, eight_bits):
        result = converted(eight_bits, tmp_path / "x", QuantizeOptions(dequantize=True))
        config = json.loads((result / "config.json").read_text())
        assert not config.keys() & {"quantization", "quantization_config"}
        theirs, ours = load_weights(HF_CHECKPOINT), load_weights(result)
        name = "language_model.model.layers.0.self_attn.q_proj.weight"
        assert ours[name].dtype == mx.bfloat16
        assert mx.allclose(ours[name], theirs[name], atol=0.05 * theirs[name].max().item())
        assert not any(name.endswith(".scales") for name in ours)
        load(str(result))

    def test_a_quantised_conversion_can_be_quantised_again(self, tmp_path, eight_bits, capsys):
        options = QuantizeOptions(quantize=True, q_bits=4, q_group_size=32)
        directory = convert(SourceFiles(str(eight_bits)), tmp_path / "x", options).directory
        config = json.loads((directory / "config.json").read_text())
        assert config["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"}
        assert "the accuracy lost by that is not recovered" in capsys.readouterr().out
        load(str(directory))

    def test_a_quantised_stock_conversion_stays_quantised(self, tmp_path):
        upstream_convert(str(HF_CHECKPOINT), str(tmp_path / "s"), True, trust_remote_code=False)
        result = converted(tmp_path / "s", tmp_path / "x", QuantizeOptions())
        assert same_weights(tmp_path / "s", result)
        config = json.loads((result / "config.json").read_text())
        assert config["model_type"] == "moxin"
        assert config["quantization"]["bits"] == 4
