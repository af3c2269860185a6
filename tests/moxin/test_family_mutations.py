"""The comparisons with the reference can fail: each mutation of a member is caught by one."""

import contextlib

import mlx.core as mx
import mlx.nn as nn
import pytest
from family_members import FAMILY, Reference, converted
from mlx_vlm import load
from mlx_vlm.models.moxin.language import DecoderModel
from mlx_vlm.models.moxin.vision import Block, VisionTransformer

from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions


@pytest.fixture
def clip():
    return fresh("clip")


@pytest.fixture
def dinoclip():
    return fresh("dinoclip")


def fresh(name):
    """A private copy of model and processor in float32, and their reference."""
    model, processor = load(str(FAMILY / name / "hf"))
    model.set_dtype(mx.float32)
    return model, processor, Reference(name, "hf")


@contextlib.contextmanager
def is_caught(check, *arguments):
    check(*arguments)
    yield
    with pytest.raises(AssertionError):
        check(*arguments)


def set_activation(model, name: str) -> None:

    for block in model.vision_tower.clip.blocks:
        block.mlp.activation = name


@pytest.mark.parametrize("name", ["clip", "dinoclip"])
def test_the_exact_gelu_in_place_of_the_quick_one_is_caught(name):
    model, processor, reference = fresh(name)
    with is_caught(reference.check_features, model, processor):
        set_activation(model, "gelu")


def test_the_quick_gelu_in_a_native_dinoclip_is_caught(tmp_path):
    options = QuantizeOptions(dtype="float32")
    model, processor = load(str(converted("dinoclip", "native", tmp_path / "model", options)))
    reference = Reference("dinoclip", "native")
    with is_caught(reference.check_features, model, processor):
        set_activation(model, "quick_gelu")


@pytest.mark.parametrize("name", ["dino", pytest.param("siglip384", marks=pytest.mark.slow)])
def test_tanh_gelu_in_towers_and_projector_is_caught(name, monkeypatch):
    model, processor, reference = fresh(name)
    with is_caught(reference.check_features, model, processor):
        monkeypatch.setattr(nn, "gelu", nn.gelu_approx)


def test_a_wrong_layer_norm_eps_is_caught(clip):
    model, processor, reference = clip
    with is_caught(reference.check_features, model, processor):
        model.vision_tower.clip.norm_pre.eps = 1e-6


def test_a_missing_norm_before_the_blocks_is_caught(clip):
    model, processor, reference = clip
    with is_caught(reference.check_features, model, processor):
        del model.vision_tower.clip["norm_pre"]


def test_the_class_tokens_position_on_the_first_patch_is_caught(clip):
    model, processor, reference = clip
    tower = model.vision_tower.clip
    with is_caught(reference.check_features, model, processor):
        tower.pos_embed = mx.roll(tower.pos_embed, -1, axis=1)


@pytest.mark.parametrize("change", ["one less", "one more"])
def test_a_block_off_by_one_is_caught(clip, change):
    model, processor, reference = clip
    tower = model.vision_tower.clip
    with is_caught(reference.check_features, model, processor):
        if change == "one less":
            tower.blocks.pop()
        else:
            file = mx.load(str(FAMILY / "clip" / "hf" / "model.safetensors"))
            prefix = f"vision_backbone.featurizer.blocks.{len(tower.blocks)}."
            block = Block(tower.config)
            weights = {k.removeprefix(prefix): v for k, v in file.items() if k.startswith(prefix)}
            block.load_weights([(k, v.astype(mx.float32)) for k, v in weights.items()])
            tower.blocks.append(block)


def test_swapped_towers_are_caught(dinoclip, monkeypatch):
    model, processor, reference = dinoclip
    with is_caught(reference.check_features, model, processor):
        monkeypatch.setattr(
            type(model.vision_tower),
            "towers",
            property(lambda tower: [tower.clip, tower.dino]),
        )


def test_patches_that_are_shifted_by_a_register_are_caught(dinoclip, monkeypatch):
    model, processor, reference = dinoclip
    with is_caught(reference.check_features, model, processor):
        monkeypatch.setattr(VisionTransformer, "patches", lambda tower, x: x[:, :9])


def test_the_other_letterbox_colour_is_caught(dinoclip):
    _, processor, reference = dinoclip
    with is_caught(reference.check_pixels, processor):
        processor.image_processor.letterbox_fill[0] = [123, 116, 103]


@pytest.mark.parametrize("name", ["clip", "dinoclip"])
def test_a_wrong_rms_norm_eps_is_caught(name):
    model, processor, reference = fresh(name)
    with is_caught(reference.check_logits, model, processor):
        for layer in model.layers:
            layer.input_layernorm.eps = layer.post_attention_layernorm.eps = 1e-5


@pytest.mark.parametrize("name", ["clip", "dinoclip"])
def test_full_instead_of_causal_attention_is_caught(name, monkeypatch):
    model, processor, reference = fresh(name)
    with is_caught(reference.check_logits, model, processor):
        monkeypatch.setattr(DecoderModel, "attention_mask", lambda *arguments: None)
