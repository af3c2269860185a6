"""The kernel that embeds patches, run on the CPU: where it reads each array of the joined ones."""

import mlx.core as mx
import pytest
from cuda_support import assert_as_close
from kernels_on_cpu import COMPILER
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin.cuda import kernel
from mlx_vlm.models.moxin.vision import VisionModel
from test_towers import make_model
from threads_on_cpu import ThreadsOnCpu


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_tokens_are_as_close_to_float32_as_the_modules(kernels_everywhere, monkeypatch, tmp_path):
    monkeypatch.setattr(kernel, "build", ThreadsOnCpu(tmp_path, blocks=3))
    with mx.stream(mx.cpu):
        model = make_model(mx.bfloat16, image_size=126)
        exact = VisionModel(model.config)
        weights = tree_flatten(model.parameters())
        exact.load_weights([(path, array.astype(mx.float32)) for path, array in weights])
        pixels = mx.random.normal((2, 6, 126, 126)).astype(mx.bfloat16)
        expected, allowed = exact.embed(pixels.astype(mx.float32)), model.embed(pixels)
        actual = model.engine_embed(model.towers, pixels)
        for tokens in zip(actual, allowed, expected, strict=True):
            assert_as_close(*tokens)
