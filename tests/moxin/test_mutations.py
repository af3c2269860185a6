"""The reference checks can fail: each mutation of the model is caught by one of them."""

from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
import pytest
import reference_checks as checks
from mlx_vlm import load
from mlx_vlm.models.moxin import image_processing_moxin, resize, vision
from mlx_vlm.models.moxin.towers import TowerConfig
from PIL import Image
from support import HF_CHECKPOINT


def source_tensors(prefix: str) -> dict[str, mx.array]:
    """The reference checkpoint's tensors under ``prefix``, float32, prefix removed."""
    return {
        name.removeprefix(prefix): value.astype(mx.float32)
        for file in sorted(HF_CHECKPOINT.glob("*.safetensors"))
        for name, value in mx.load(str(file)).items()
        if name.startswith(prefix)
    }


@pytest.fixture
def fresh():
    """A private copy of model and processor in float32."""
    model, processor = load(str(HF_CHECKPOINT))
    model.set_dtype(mx.float32)
    return model, processor


@contextmanager
def is_caught(check, *arguments):
    yield
    with pytest.raises(AssertionError):
        check(*arguments)


def test_the_checks_pass_on_an_unchanged_model(fresh):
    checks.check_features(*fresh)
    checks.check_logits(*fresh)


def test_tanh_gelu_is_caught(fresh, monkeypatch):
    with is_caught(checks.check_features, *fresh):
        monkeypatch.setattr(nn, "gelu", nn.gelu_approx)


def change_dino_output(model, monkeypatch, change) -> None:
    """Apply ``change`` to the outputs of the DINOv2 tower."""
    original = vision.VisionTransformer.patches

    def patches(tower, tokens):
        features = original(tower, tokens)
        return change(features) if tower is model.vision_tower.dino else features

    monkeypatch.setattr(vision.VisionTransformer, "patches", patches)


def test_the_final_norm_is_caught(fresh, monkeypatch):
    norm = nn.LayerNorm(64, eps=1e-6)
    norm.load_weights(list(source_tensors("vision_backbone.featurizer.norm.").items()))
    with is_caught(checks.check_features, *fresh):
        change_dino_output(fresh[0], monkeypatch, norm)


def test_one_block_less_is_caught(fresh):
    with is_caught(checks.check_features, *fresh):
        fresh[0].vision_tower.siglip.blocks.pop()


def test_one_block_more_is_caught(fresh):
    tower = fresh[0].vision_tower.dino
    weights = source_tensors("vision_backbone.featurizer.blocks.3.")
    block = vision.Block(tower.config)
    renamed = {name.replace("scale_factor", "gamma"): value for name, value in weights.items()}
    block.load_weights(list(renamed.items()))
    with is_caught(checks.check_features, *fresh):
        tower.blocks.append(block)


def test_prefix_tokens_left_in_are_caught(fresh, monkeypatch):
    count = fresh[0].config.vision_config.num_patches
    monkeypatch.setattr(TowerConfig, "num_prefix_tokens", 0)
    with is_caught(checks.check_features, *fresh):
        change_dino_output(fresh[0], monkeypatch, lambda features: features[:, :count])


def test_a_wrong_rms_norm_eps_is_caught(fresh):
    with is_caught(checks.check_logits, *fresh):
        for layer in fresh[0].layers:
            layer.input_layernorm.eps = layer.post_attention_layernorm.eps = 1e-5


def test_a_wrong_layer_norm_eps_is_caught(fresh):
    with is_caught(checks.check_features, *fresh):
        for block in fresh[0].vision_tower.siglip.blocks:
            block.norm1.eps = block.norm2.eps = 1e-5


def test_swapped_normalisations_are_caught(fresh):
    image_processor = fresh[1].image_processor
    with is_caught(checks.check_features, *fresh):
        image_processor.image_mean.reverse()
        image_processor.image_std.reverse()


def test_swapped_towers_are_caught(fresh):
    towers = fresh[0].vision_tower
    with is_caught(checks.check_features, *fresh):
        towers.dino, towers.siglip = towers.siglip, towers.dino


def test_a_wrong_rope_base_is_caught(fresh):
    with is_caught(checks.check_logits, *fresh):
        for layer in fresh[0].layers:
            layer.self_attn.rope.base = 1e6


def test_a_picture_in_the_wrong_place_is_caught(fresh, monkeypatch):
    processor = fresh[1]
    original = processor._row
    with is_caught(checks.check_logits, *fresh):
        monkeypatch.setattr(processor, "_row", lambda *a: [(r := original(*a))[-1], *r[1:-1], r[0]])


def test_the_vertical_pass_first_is_caught(monkeypatch):
    def vertical_first(image, width, height):
        image = image.resize((image.width, height), Image.Resampling.BICUBIC)
        return image.resize((width, height), Image.Resampling.BICUBIC)

    with is_caught(checks.check_pixels):
        monkeypatch.setattr(resize, "_resize", vertical_first)


def test_a_float_resize_is_caught(monkeypatch):
    def one_rounding(image, width, height):
        channels = [
            band.convert("F").resize((width, height), Image.Resampling.BICUBIC).convert("L")
            for band in image.split()
        ]
        return Image.merge("RGB", channels)

    with is_caught(checks.check_pixels):
        monkeypatch.setattr(resize, "_resize", one_rounding)


def test_constants_that_are_not_rounded_are_caught(monkeypatch):
    unrounded = image_processing_moxin.MoxinImageProcessor(image_size=28)
    with is_caught(checks.check_pixels):
        monkeypatch.setattr(checks, "image_processor", lambda strategy: unrounded)


def test_one_norm_off_by_a_tenth_is_caught_in_bfloat16():
    fresh = load(str(HF_CHECKPOINT))
    checks.check_bf16(*fresh)
    with is_caught(checks.check_bf16, *fresh):
        fresh[0].vision_tower.siglip.blocks[0].norm1.weight *= 1.1
