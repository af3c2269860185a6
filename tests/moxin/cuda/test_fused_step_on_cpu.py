"""The kernel of the decoding step, run on the CPU: its layouts, its arithmetic and the barriers."""

import mlx.core as mx
import pytest
from cuda_support import filled_cache, make_decoder
from kernels_on_cpu import COMPILER
from layers_on_cpu import LENGTH, check_layers, run_on_cpu
from mlx_vlm.models.moxin.cuda import device, fused_layers, fused_step, kv_cache

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("dtype", "bits", "group_size", "is_streamed", "scale", "intermediate", "length"),
    [
        slow(mx.bfloat16, 16, 64, False, 1, 512, LENGTH),
        slow(mx.float16, 8, 32, False, 1, 512, LENGTH),
        slow(mx.float16, 4, 64, False, 1, 512, LENGTH),
        # The last pieces of rows are shorter than others. A warp reads several rounds of keys.
        (mx.bfloat16, 8, 64, True, 1e8, 2304, 300),
        (mx.bfloat16, 4, 64, True, 1, 4352, LENGTH),
    ],
    ids=["bf16", "8 bits f16", "4 bits f16", "8 bits, large values", "4 bits"],
)
def test_layers_are_as_close_to_float32_as_the_modules(
    dtype,
    bits,
    group_size,
    is_streamed,
    scale,
    intermediate,
    length,
    on_cpu,
    kernels_everywhere,
    monkeypatch,
    tmp_path,
):
    threads = run_on_cpu(tmp_path, monkeypatch)
    monkeypatch.setattr(device, "max_shared_memory", lambda: 227 * 1024)
    model = make_decoder(dtype, bits, group_size, intermediate_size=intermediate)
    norm = model.model.layers[0].post_attention_layernorm
    norm.weight = (norm.weight * scale).astype(dtype)  # the MLP's values grow with its square
    inputs = mx.array([[7]])

    def launch(sizes, layers, cache):
        formats, is_joined = layers[0].formats, layers[0].form.is_joined
        assert bool(fused_step.find_stream(sizes, formats).slots) == is_streamed
        (filled, masked), arrays = kv_cache.places(cache, 1), kv_cache.held(cache)
        fused = fused_step.step_kernel.__wrapped__(
            sizes, formats, len(layers), arrays[0].shape[2], is_joined
        )
        x = model.model.embed_tokens(inputs).reshape(-1)
        return fused_layers.launch(fused, layers, x, filled, arrays, masked)

    check_layers(model, dtype, inputs, lambda: filled_cache(length, dtype), threads, launch, length)
