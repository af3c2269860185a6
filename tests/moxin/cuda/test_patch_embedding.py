"""The CUDA kernel that embeds patches: what it supports, and its results on a GPU."""

import math
import weakref

import mlx.core as mx
import pytest
from cuda_support import assert_as_close, needs_gpu, recording
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin.cuda import device, joined_arrays, kernel, patch_embedding
from mlx_vlm.models.moxin.vision import VisionModel
from test_towers import DINO, SIGLIP, make_model


def plain_kernel(dtype, pixels, shape, patch, towers, tiles):
    """The kernel in MLX."""
    batch, height, width = shape
    rows, columns = height // patch, width // patch

    def run(arrivals, pixel_values, *arrays):
        assert pixel_values.dtype == pixels
        tokens = []
        for which, (tower, whole) in enumerate(zip(towers, arrays, strict=True)):
            shapes = tower.shapes(patch, rows * columns)
            starts = joined_arrays.offsets((shape, dtype) for shape in shapes.values())
            parts = [
                whole[start:].view(dtype)[: math.prod(shape)].reshape(shape)
                for start, shape in zip(starts, shapes.values())
            ]
            weight, bias, *prefixes, position = parts
            x = pixel_values[:, 3 * which :][:, :3, : rows * patch, : columns * patch]
            x = x.reshape(batch, 3, rows, patch, columns, patch).transpose(0, 2, 4, 3, 5, 1)
            x = x.reshape(batch, rows * columns, -1).astype(dtype)
            x = x @ weight.reshape(tower.width, -1).T + bias + position
            prefixes = [mx.repeat(prefix, batch, axis=0) for prefix in prefixes]
            tokens.append(mx.concatenate([*prefixes, x], axis=1))
        return tokens

    return run


@pytest.fixture
def plain(kernels_everywhere, monkeypatch):
    """The kernel in MLX and float32."""
    monkeypatch.setattr(patch_embedding, "embed_patches", plain_kernel)
    monkeypatch.setattr(patch_embedding, "DTYPES", (mx.float32,))


@pytest.mark.parametrize("size", [140, 150])
def test_everything_around_the_kernel_equals_the_modules(size, plain):
    """Also with a margin narrower than a patch."""
    model = make_model(mx.float32, image_size=size)
    pixels = mx.random.normal((2, 6, size, size))
    with mx.stream(mx.cpu):
        actual, expected = model.engine_embed(model.towers, pixels), model.embed(pixels)
        assert [x.shape for x in actual] == [x.shape for x in expected]
        assert all(mx.allclose(*pair, atol=1e-4).item() for pair in zip(actual, expected))


def test_both_towers_are_embedded_by_one_kernel(kernels_everywhere, monkeypatch):
    calls = []
    monkeypatch.setattr(kernel, "build", recording(calls))
    model = make_model()
    tokens = model.engine_embed(model.towers, mx.zeros((2, 6, 140, 140)))
    assert [x.shape for x in tokens] == [(2, 105, DINO["hidden_size"]), (2, 100, 144)]
    assert calls == ["embed_patches"]


def write_bias(model):
    model.siglip.patch_embed.proj.bias *= 2


def replace_weight(model):
    projection = model.dino.patch_embed.proj
    projection.weight = projection.weight + 1


def replace_position(model):
    model.siglip.pos_embed = model.siglip.pos_embed[:, ::-1]


def replace_prefix(model):
    model.dino.reg_token = mx.ones_like(model.dino.reg_token)


@pytest.mark.parametrize("change", [write_bias, replace_weight, replace_position, replace_prefix])
def test_tokens_are_those_of_the_arrays_as_they_are(change, plain):
    model, pixels = make_model(mx.float32), mx.random.normal((1, 6, 140, 140))
    with mx.stream(mx.cpu):
        first = model.engine_embed(model.towers, pixels)
        again = model.engine_embed(model.towers, pixels)
        assert all(mx.array_equal(*pair).item() for pair in zip(first, again))
        change(model)
        actual, expected = model.engine_embed(model.towers, pixels), model.embed(pixels)
        assert not all(mx.array_equal(*pair).item() for pair in zip(actual, first))
        assert all(mx.allclose(*pair, atol=1e-4).item() for pair in zip(actual, expected))


def test_arrays_are_moved_once_and_freed_with_the_model(plain, without_collector):
    model, pixels = make_model(mx.float32), mx.zeros((1, 6, 140, 140))
    with mx.stream(mx.cpu):
        model.engine_embed(model.towers, pixels)
        before = model.dino.pos_embed
        kept = [weakref.ref(array) for array in patch_embedding.engines.get(model)._joined.arrays]
        model.engine_embed(model.towers, mx.zeros((2, 6, 140, 140)))
    assert model.dino.pos_embed is before
    assert len(kept) == 2
    assert all(reference() is not None for reference in kept)
    del model, before
    assert [reference() for reference in kept] == [None, None]


def test_a_step_that_overlaps_is_checked_again(kernels_everywhere, monkeypatch):
    """Also if it was not when the arrays were joined."""
    model, pixels = make_model(), mx.zeros((1, 6, 140, 140))
    monkeypatch.setattr(kernel, "build", recording([]))
    assert model.engine_embed(model.towers, pixels) is not None
    projection = other_stride(model).dino.patch_embed.proj
    projection.weight = 1 * projection.weight
    assert model.engine_embed(model.towers, pixels) is None


def other_stride(model):
    model.dino.patch_embed.proj.stride = (7, 7)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_model(mx.float32),
        lambda: make_model().train(),
        lambda: make_model(dino=DINO | {"pre_norm": True}),
        lambda: make_model(dino=DINO | {"class_position": True}),
        lambda: make_model(siglip=SIGLIP | {"patch_bias": False}),
        lambda: make_model(siglip=None),
        lambda: other_stride(make_model()),
    ],
    ids=["float32", "training", "norm", "class position", "no bias", "one tower", "stride"],
)
def test_the_modules_embed_other_towers(make, kernels_everywhere):
    model = make()
    pixels = mx.zeros((1, 3 * len(model.towers), 140, 140))
    assert model.engine_embed(model.towers, pixels) is None


@pytest.mark.parametrize(
    "pixels",
    [
        mx.zeros((1, 6, 140, 140), mx.uint8),
        mx.zeros((1, 3, 140, 140)),
        mx.zeros((1, 6, 140, 168)),
    ],
    ids=["bytes", "channels", "size"],
)
def test_the_modules_embed_other_pixels(pixels, kernels_everywhere):
    model = make_model()
    assert model.engine_embed(model.towers, pixels) is None


def test_other_devices_use_the_modules():
    model = make_model()
    tokens = model.engine_embed(model.towers, mx.zeros((1, 6, 140, 140)))
    assert tokens is None or mx.cuda.is_available()


@needs_gpu
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("pixel_dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_tokens_are_as_close_to_float32_as_the_modules(dtype, pixel_dtype, batch):
    model = make_model(dtype, image_size=150)
    pixels = mx.random.normal((batch, 6, 150, 150)).astype(pixel_dtype)
    exact = VisionModel(model.config)
    weights = tree_flatten(model.parameters())
    exact.load_weights([(path, array.astype(mx.float32)) for path, array in weights])
    with mx.stream(mx.cpu):  # GPUs multiply float32 with reduced precision
        expected = exact.embed(pixels.astype(dtype).astype(mx.float32))
        mx.eval(expected)
    actual, allowed = model.engine_embed(model.towers, pixels), model.embed(pixels)
    for ours, modules, true in zip(actual, allowed, expected):
        assert_as_close(ours, modules, true)
    prefix = model.config.dino.num_prefix_tokens
    assert mx.array_equal(actual[0][:, :prefix], allowed[0][:, :prefix]).item()
    assert device.enabled()
