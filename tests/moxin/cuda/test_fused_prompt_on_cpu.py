"""The kernel of short prompts, run on the CPU: its layouts, its arithmetic and the barriers."""

import mlx.core as mx
import pytest
from cuda_support import filled_cache, make_decoder
from kernels_on_cpu import COMPILER
from layers_on_cpu import LENGTH, check_layers, run_on_cpu
from mlx_vlm.models.moxin.cuda import fused_layers, fused_prompt, kernel, kv_cache

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.mark.parametrize(("bits", "group_size"), [(4, 64)])
def test_layers_are_as_close_to_float32_as_the_modules(
    bits, group_size, on_cpu, kernels_everywhere, monkeypatch, tmp_path
):
    dtype = mx.bfloat16
    threads = run_on_cpu(tmp_path, monkeypatch)
    model = make_decoder(dtype, bits, group_size, intermediate_size=640)
    inputs = mx.array([[7, 8, 9, 4, 5]])

    def launch(sizes, layers, cache):
        arrays, tokens = kv_cache.held(cache), inputs.shape[1]
        form, capacity = layers[0].form, arrays[0].shape[2]
        arguments = form.formats, len(layers), tokens, capacity, form.is_joined
        fused = fused_prompt.prompt_kernel.__wrapped__(sizes, *arguments)
        x, filled = model.model.embed_tokens(inputs)[0], kernel.count_array(LENGTH)
        return fused_layers.launch(fused, layers, x, filled, arrays)

    check_layers(model, dtype, inputs, lambda: filled_cache(LENGTH, dtype), threads, launch)
