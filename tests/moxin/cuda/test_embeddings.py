"""Embeddings, visual tokens among them, and activations outside of products."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from cuda_support import assert_as_close, needs_gpu
from mlx_vlm.models.moxin import moxin
from mlx_vlm.models.moxin.cuda import activations, device, embeddings, kernel
from mlx_vlm.models.moxin.projector import FusedMLPProjector, Projector
from mlx_vlm.models.moxin.vision_config import ProjectorConfig

FIRST = 40  # image_token_index
# Rows, rows with a picture, text before it, visual tokens, text after it.
SHAPES = [(1, 1, 1, 7, 5), (3, 2, 2, 6, 4), (2, 2, 0, 5, 0), (4, 1, 3, 9, 1)]


def prompts(rows, pictures, before, count, after):
    """Ids with placeholders, and one such id later in the first row's answer."""
    ids = np.random.default_rng(0).integers(0, FIRST, (rows, before + count + after + 1))
    ids[:pictures, before : before + count] = FIRST + 3
    ids[0, -1] = FIRST
    return mx.array(ids.astype(np.int32))


def merge_in_mlx(dtype, tokens, width):
    def run(embeds, features, places):
        assert embeds.shape == (tokens, width)
        assert embeds.dtype == features.dtype == dtype
        chosen = features[mx.maximum(places, 0)]
        return [mx.where((places >= 0)[:, None], chosen, embeds)]

    return run


@pytest.mark.parametrize("shape", SHAPES)
def test_visual_tokens_take_the_places_of_their_placeholders(shape, monkeypatch):
    monkeypatch.setattr(embeddings, "merge_features", merge_in_mlx)
    ids, (_, pictures, _, count, _) = prompts(*shape), shape
    embeds = mx.random.normal((*ids.shape, 8)).astype(mx.bfloat16)
    features = mx.random.normal((pictures, count, 8))
    expected = moxin.merge_image_features(embeds, features, ids >= FIRST)
    assert mx.array_equal(embeddings.merge(embeds, features, ids >= FIRST), expected).item()


@pytest.mark.parametrize(
    ("table", "dtype", "ids"),
    [
        (nn.Embedding(9, 16), mx.float32, mx.int32),
        (nn.QuantizedEmbedding(9, 64), mx.bfloat16, mx.int32),
        (nn.Embedding(9, 16), mx.bfloat16, mx.int64),
        (nn.Embedding(9, 12), mx.bfloat16, mx.int32),
    ],
    ids=["dtype", "quantised", "ids", "width"],
)
def test_other_tables_are_left_to_the_module(table, dtype, ids):
    table.set_dtype(dtype)
    tokens = mx.array([1, 8], ids)
    assert not embeddings.is_supported(table, tokens)
    assert mx.array_equal(embeddings.embed(table, tokens), table(tokens)).item()


def test_kernels_that_fail_leave_embeddings_to_mlx(model, kernels_everywhere, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("CUDA_ERROR_INVALID_IMAGE")

    monkeypatch.setattr(device, "_failures", [])
    monkeypatch.setattr(embeddings, "is_supported", lambda *arguments: True)
    monkeypatch.setattr(embeddings, "embed_tokens", fail)
    ids = mx.array([[1, 2, 3]])
    expected = model.language_model.model.embed_tokens(ids)
    assert mx.array_equal(model.get_input_embeddings(ids).inputs_embeds, expected).item()
    assert len(device._failures) == 1


def test_text_does_not_delay_the_pictures(model, kernels_everywhere, monkeypatch):
    submitted, events = [], []

    def embed(table, ids):
        events.append("text")
        return table(ids)

    monkeypatch.setattr(embeddings, "is_supported", lambda *arguments: True)
    monkeypatch.setattr(embeddings, "embed", embed)
    monkeypatch.setattr(embeddings, "merge", moxin.merge_image_features)
    monkeypatch.setattr(mx, "async_eval", submitted.append)
    config = model.config
    features = mx.random.normal((1, 3, config.text_config.hidden_size))

    ids = mx.array([[1, *3 * [config.image_token_index], 2]], mx.int32)
    merged = embeddings.input_embeddings(model, ids, lambda: events.append("pictures") or features)
    assert events == ["pictures", "text"]
    table = model.language_model.model.embed_tokens
    assert mx.array_equal(merged[:, 1:4], features.astype(merged.dtype)).item()
    assert mx.array_equal(merged[:, [0, 4]], table(ids[:, [0, 4]])).item()
    assert mx.array_equal(embeddings.input_embeddings(model, ids, None), table(ids)).item()
    assert not submitted


def test_a_projector_in_training_keeps_the_gelu_that_has_a_gradient(
    kernels_everywhere, monkeypatch
):
    monkeypatch.setattr(activations, "DTYPES", (mx.float32,))
    monkeypatch.setattr(activations, "gelu_kernel", lambda *arguments: pytest.fail("no gradient"))
    projector = FusedMLPProjector(
        ProjectorConfig(input_size=8, intermediate_size=16, output_size=8)
    )
    projector.train()
    assert projector(mx.ones((1, 2, 8))).shape == (1, 2, 8)


@needs_gpu
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("ids", [mx.int32, mx.uint32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 290), (5, 3)])
def test_embeddings_are_the_tables_rows(dtype, ids, shape):
    table = nn.Embedding(100, 4096)
    table.set_dtype(dtype)
    tokens = mx.random.randint(0, 100, shape).astype(ids)
    assert embeddings.is_supported(table, tokens)
    assert mx.array_equal(embeddings.embed(table, tokens), table(tokens)).item()


@needs_gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_merged_embeddings_are_those_of_mlx(shape):
    ids, (_, pictures, _, count, _) = prompts(*shape), shape
    embeds = mx.random.normal((*ids.shape, 4096)).astype(mx.bfloat16)
    features = mx.random.normal((pictures, count, 4096)).astype(mx.bfloat16)
    expected = moxin.merge_image_features(embeds, features, ids >= FIRST)
    assert mx.array_equal(embeddings.merge(embeds, features, ids >= FIRST), expected).item()


@needs_gpu
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("size", [8, 256 * 8704])
def test_gelu_is_as_close_to_float32_as_mlx(dtype, size):
    exact = 3 * mx.random.normal((size,))
    x = exact.astype(dtype)
    expected = nn.gelu(x.astype(mx.float32))
    assert_as_close(Projector().eval().gelu(x), nn.gelu(x), expected)


@needs_gpu
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (100, 640), (288, 14336)])
@pytest.mark.parametrize("is_joined", [True, False])
def test_swiglu_is_as_close_to_float32_as_mlx(dtype, rows, width, is_joined):
    product = (3 * mx.random.normal((rows, 2 * width))).astype(dtype)
    gate, up = mx.split(product, 2, axis=-1)
    products = [product] if is_joined else [mx.contiguous(gate), mx.contiguous(up)]
    expected = nn.silu(gate.astype(mx.float32)) * up.astype(mx.float32)
    assert_as_close(activations.swiglu(products), nn.silu(gate) * up, expected)


def test_kernels_are_built_for_the_dtypes_that_they_support():
    assert activations.DTYPES == embeddings.DTYPES == kernel.DTYPES
