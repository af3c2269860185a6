"""The kernel of batches, run on the CPU: its layouts, its arithmetic and the barriers."""

import mlx.core as mx
import pytest
from cuda_support import batch_cache, make_decoder
from kernels_on_cpu import COMPILER
from layers_on_cpu import LENGTH, check_layers, run_on_cpu
from mlx_vlm.models.moxin.cuda import device, fused_batch, fused_layers, kv_cache

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

PADDING = [0, 3, 11, 1, 0, 2, 5, 29]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("dtype", "bits", "group_size", "batch", "scale", "memory", "config"),
    [
        slow(mx.bfloat16, 16, 64, 8, 1, 227, {"sliding_window": 20}),
        slow(mx.bfloat16, 8, 64, 8, 1e8, 99, {}),
        (mx.bfloat16, 4, 64, 5, 1, 227, {}),
        slow(mx.float16, 4, 32, 3, 1, 227, {}),
    ],
    ids=["bf16", "8 bits, large values, little memory", "4 bits", "4 bits f16"],
)
def test_layers_are_as_close_to_float32_as_the_modules(
    dtype, bits, group_size, batch, scale, memory, config, monkeypatch, tmp_path
):
    threads = run_on_cpu(tmp_path, monkeypatch)
    monkeypatch.setattr(device, "max_shared_memory", lambda: memory * 1024)
    model = make_decoder(dtype, bits, group_size, intermediate_size=640, **config)
    norm = model.model.layers[0].post_attention_layernorm
    norm.weight = (norm.weight * scale).astype(dtype)  # the MLP's values grow with its square
    inputs, padding = mx.arange(batch)[:, None] + 7, PADDING[:batch]

    def launch(sizes, layers, cache):
        (filled, masked), arrays = kv_cache.places(cache, batch), kv_cache.reserve(cache)
        form, capacity = layers[0].form, arrays[0].shape[2]
        arguments = form.formats, len(layers), batch, capacity, form.is_joined
        fused = fused_batch.batch_kernel.__wrapped__(sizes, *arguments)
        x = model.model.embed_tokens(inputs)[:, 0]
        return fused_layers.launch(fused, layers, x, filled, arrays, masked)

    def make_cache():
        return batch_cache(LENGTH, padding, dtype)

    check_layers(model, dtype, inputs, make_cache, threads, launch)
