"""The other members of the Prismatic family: the PyTorch reference's pixels, features, logits,
prompts and tokens, natively converted and HF-converted.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import pytest
from family_members import FAMILY, FORMS, Reference, converted, native_files
from mlx_vlm import load

from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions


@dataclass
class Loaded:
    """A member in float32, and its reference."""

    model: Any
    processor: Any
    reference: Reference


# The largest pictures; the other members run in the default run.
SLOW = "siglip384"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(form, marks=pytest.mark.slow if form[0] == SLOW else ()) for form in FORMS
    ],
    ids="-".join,
)
def member(request, tmp_path_factory):
    name, form = request.param
    path = FAMILY / name / form
    if form == "native":
        float32 = QuantizeOptions(dtype="float32")
        path = converted(name, form, tmp_path_factory.mktemp(name) / "model", float32)
    model, processor = load(str(path))
    model.set_dtype(mx.float32)
    return Loaded(model, processor, Reference(name, form))


def test_pixels_equal_the_reference_to_the_last_bit(member):
    member.reference.check_pixels(member.processor)


def test_features_equal_the_reference(member):
    member.reference.check_features(member.model, member.processor)


def test_logits_equal_the_reference(member):
    member.reference.check_logits(member.model, member.processor)


def test_prompts_equal_the_reference(member):
    member.reference.check_prompts(member.processor, member.model.config)


def test_greedy_tokens_equal_the_reference(member):
    member.reference.check_answers(member.model, member.processor)


def test_settings_come_from_the_checkpoint():
    config = native_files("siglip384").open().config
    assert (config.vision_config.image_size, config.vision_config.num_patches) == (384, 27**2)
    assert (config.prompt_format, config.text_config.rms_norm_eps) == ("pure", 1e-5)
    assert [*config.vision_config.towers] == ["siglip"]
    clip = native_files("clip").open().config.vision_config.clip
    assert (clip.activation, clip.layer_norm_eps, clip.pre_norm) == ("quick_gelu", 1e-5, True)
    assert (clip.patch_bias, clip.class_position) == (False, True)
    assert native_files("dinoclip").open().config.vision_config.clip.activation == "gelu"
    hf = load(str(FAMILY / "dinoclip" / "hf"), lazy=True)[0].config
    assert hf.vision_config.clip.activation == "quick_gelu"
    assert (hf.text_config.rms_norm_eps, hf.prompt_format) == (1e-6, "mistral-instruct")


def test_the_letterbox_has_a_colour_per_tower_natively_and_one_in_hf_converted_checkpoints():
    native = native_files("dinoclip").open().processor.image_processor
    assert native.letterbox_fill == [[123, 116, 103], [122, 116, 104]]
    hf = load(str(FAMILY / "dinoclip" / "hf"), lazy=True)[1].image_processor
    assert hf.letterbox_fill == [[122, 116, 104]] * 2
