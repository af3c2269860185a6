"""Placeholders encode the picture in ids that never occur in text."""

import numpy as np
import pytest
from mlx_vlm.models.moxin import prepared_picture
from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor
from mlx_vlm.models.moxin.prepared_picture import LastPicture, image_placeholders
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from PIL import Image
from support import HF_CHECKPOINT


def test_placeholders_tell_pictures_apart_and_repeat_for_the_same_one():
    codes = set()
    rng = np.random.default_rng(0)
    for _ in range(50):
        pixels = rng.standard_normal((6, 4, 4)).astype(np.float32)
        code = tuple(image_placeholders(pixels, 256, 32001, 32064))
        assert code == tuple(image_placeholders(pixels.copy(), 256, 32001, 32064))
        assert len(code) == 256
        assert set(code) <= set(range(32001, 32064))
        codes.add(code[:16])
    assert len(codes) == 50


def test_placeholders_are_drawn_from_the_whole_range_and_nothing_else():
    rng = np.random.default_rng(0)
    pixels = (rng.standard_normal((6, 4, 4)).astype(np.float32) for _ in range(50))
    drawn = [image_placeholders(each, 256, 32001, 32064) for each in pixels]
    assert {token for ids in drawn for token in ids[:-1]} == set(range(32002, 32064))
    assert {ids[-1] for ids in drawn} == {32001}
    # The smallest range that a config allows: one id besides the last one.
    assert image_placeholders(np.zeros((6, 4, 4), np.float32), 4, 10, 12) == [11, 11, 11, 10]


def test_one_changed_pixel_changes_the_placeholders():
    pixels = np.zeros((6, 4, 4), np.float32)
    changed = pixels.copy()
    changed[5, 3, 3] = 1e-7
    assert image_placeholders(pixels, 256, 1, 64) != image_placeholders(changed, 256, 1, 64)


def test_another_normalisation_changes_the_placeholders():
    """Which come from the bytes, and which must differ for inputs of the model that differ."""
    picture = Image.new("RGB", (6, 10), "red")
    placeholders = []
    for mean in (0.5, 0.4):
        processor = MoxinImageProcessor(image_mean=[[mean] * 3] * 2)
        placeholders.append(prepared_picture.prepare(picture, processor, (256, 1, 64)).placeholders)
    assert placeholders[0] != placeholders[1]


@pytest.mark.parametrize(("size", "is_remembered"), [((6, 10), True), ((61, 1), False)])
def test_pictures_of_more_pixels_than_the_limit_are_not_remembered(
    monkeypatch, size, is_remembered
):
    monkeypatch.setattr(prepared_picture, "MAX_REMEMBERED", 60)
    processor = MoxinProcessor.from_pretrained(HF_CHECKPOINT)
    last, image = LastPicture(), Image.new("RGB", size)
    placeholders = (16, 512, 576)
    first, second = (
        last.prepared(image, processor.image_processor, placeholders) for _ in range(2)
    )
    assert (first is second) == is_remembered
