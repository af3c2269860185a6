"""Position embeddings are resampled as in timm."""

import mlx.core as mx
import numpy as np
import pytest
from source_checkpoints import HUB
from support import ARRAYS

from mlx_vlm_moxin.checkpoints.sources.towers import read_towers, resample, resample_pos_embed
from mlx_vlm_moxin.checkpoints.tensors import LazyTensor, read_safetensors


def test_resampled_positions_equal_the_reference():
    source = np.array(read_safetensors(HUB / "dino.safetensors")["pos_embed"].load())
    reference = ARRAYS["native/dino_pos_embed"]
    grid = int(reference.shape[1] ** 0.5)
    np.testing.assert_allclose(resample_pos_embed(source, grid), reference, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(37, 16), (16, 37), (5, 2), (3, 1)])
def test_constants_stay_constant(old, new):
    values = np.full((1, old * old, 3), 0.25, np.float32)
    resampled = resample_pos_embed(values, new)
    assert resampled.dtype == np.float32
    np.testing.assert_allclose(resampled, np.full((1, new * new, 3), 0.25), rtol=1e-6)


def test_rows_and_columns_are_not_exchanged():
    rows = np.repeat(np.arange(6, dtype=np.float32), 6).reshape(1, 36, 1)
    resampled = resample_pos_embed(rows, 3).reshape(3, 3)
    assert (np.diff(resampled, axis=0) > 1).all()
    np.testing.assert_allclose(np.diff(resampled, axis=1), 0, atol=1e-6)


def test_the_same_grid_changes_nothing():
    values = np.random.default_rng(0).normal(size=(1, 16, 2)).astype(np.float32)
    assert resample_pos_embed(values, 4) is values


def test_a_grid_that_is_no_square_is_refused():
    with pytest.raises(ValueError, match="257 patches do not form a square"):
        resample_pos_embed(np.zeros((1, 257, 2), np.float32), 4)


def test_dtype_is_kept():
    source = LazyTensor.of(mx.random.normal((1, 25, 4)).astype(mx.bfloat16))
    resampled = resample(source, 4)
    assert resampled.shape == resampled.load().shape == (1, 4, 4)
    assert resampled.dtype == resampled.load().dtype == mx.bfloat16


def test_dino_alone_is_resampled_to_the_pictures_of_the_published_models(tmp_path):
    path = tmp_path / "dino.safetensors"
    mx.save_safetensors(str(path), {"pos_embed": mx.zeros((1, 37 * 37, 4))})
    towers = read_towers(["vit_large_patch14_reg4_dinov2.lvd142m"], {"dino": str(path)})
    # 224 pixels in patches of 14.
    assert towers["vision_tower.dino.pos_embed"].shape == (1, 16 * 16, 4)
