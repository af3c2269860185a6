"""Placeholders encode the picture in ids that never occur in text."""

import numpy as np
from mlx_vlm.models.moxin.prepared_picture import image_placeholders


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
