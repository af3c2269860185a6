"""What all kernels' host code shares."""

import mlx.core as mx
import pytest
from mlx_vlm.models.moxin.cuda import device, fused_batch, fused_prompt, fused_step, kernel, tiling
from mlx_vlm.models.moxin.cuda.decoder_sizes import DecoderSizes
from mlx_vlm.models.moxin.cuda.projections import Format

SIZES = DecoderSizes(mx.bfloat16, 4096, 14336, 32, 8, 128, 4096, 1e-5, 10000.0)
FORMATS = 4 * (Format(8, 64),)


def test_each_scratch_array_begins_at_a_multiple_of_256_bytes():
    shape, dtype = kernel.scratch((1, mx.bfloat16), (64, mx.float32), (65, mx.float32))
    assert dtype == mx.uint32
    assert shape == ((256 + 256 + 512) // 4,)


@pytest.mark.parametrize(("blocks", "splits"), [(132, [3, 3, 4, 4]), (108, [3, 3, 3, 3])])
def test_short_caches_are_divided_over_fewer_thread_blocks(
    blocks, splits, kernels_everywhere, monkeypatch
):
    def splits_of(entry, constants, *rest, **options):
        return constants["SPLITS"], options["blocks"]

    monkeypatch.setattr(kernel, "build", splits_of)
    monkeypatch.setattr(device, "multiprocessors", lambda: blocks)
    step = fused_step.step_kernel.__wrapped__
    found = [step(SIZES, FORMATS, 18, capacity) for capacity in (256, 512, 768, 8192)]
    assert found == [(count, blocks) for count in splits]


@pytest.mark.parametrize(
    "build",
    [
        lambda: fused_step.step_kernel(SIZES, FORMATS, 18, 512),
        lambda: fused_batch.batch_kernel(SIZES, FORMATS, 18, 8, 512),
        lambda: fused_prompt.prompt_kernel(SIZES, FORMATS, 18, tiling.ROW_TILES[-1], 512),
    ],
    ids=["step", "batch", "prompt"],
)
def test_kernels_of_many_layers_have_one_output_for_all_scratch_arrays(
    build, kernels_everywhere, monkeypatch
):
    built = []

    def record(entry, constants, inputs, outputs, *rest, **options):
        built.append(list(outputs))

    monkeypatch.setattr(kernel, "build", record)
    build()
    assert built == [["out", "scratch"]]
