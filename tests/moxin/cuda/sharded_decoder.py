"""Run by ``mlx.launch``: a decoder sharded over processes, compared with a whole one.

Without a GPU the kernels are replaced by MLX in float32. Prints a line of JSON per decoder: the
error of its logits compared with float32, that of MLX's modules for the whole decoder, whether the
kernels were used, and whether they add up over GPUs without MLX.
"""

import json

import mlx.core as mx
import plain_kernels
import pytest
from cuda_support import empty, make_decoder, relative_error, run, unpacked, uses_kernels
from mlx_vlm.models.moxin.cuda import (
    device,
    peers,
)

# A prompt with MLX's products, and tokens; a short prompt; prompts and tokens of a batch.
PASSES = [
    [(1, 100), (1, 1), (1, 1), (1, 1)],
    [(1, 20), (1, 130), (1, 1)],
    [(3, 20), (3, 1), (3, 1)],
]
CONFIG = {"intermediate_size": 1024, "sliding_window": 100}


def use_stand_ins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(device, "enabled", lambda: True)
    patch.setattr(device, "attribute", lambda number: 227 * 1024)
    plain_kernels.use(patch)


def logits(model) -> list[mx.array]:
    found = [run(model, empty(), shapes) for shapes in PASSES]
    mx.eval(found)
    return found


def compare(group: mx.distributed.Group, dtype: mx.Dtype, bits: int) -> dict:
    model = make_decoder(dtype, bits, **CONFIG)
    exact = unpacked(model)
    rounded = unpacked(model)
    rounded.set_dtype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "enabled", lambda: False)
        expected = logits(exact)
        allowed = expected if dtype == mx.float32 else logits(rounded)
    model.shard(group)
    with pytest.MonkeyPatch.context() as patch:
        if not mx.cuda.is_available():
            use_stand_ins(patch)
        actual = logits(model)
        is_ours = uses_kernels(model)
    heads = [layer.self_attn.n_heads for layer in model.layers]
    return {
        "dtype": str(dtype),
        "bits": bits,
        "heads": heads,
        "errors": [relative_error(*pair) for pair in zip(actual, expected)],
        "allowed": [relative_error(*pair) for pair in zip(allowed, expected)],
        "uses_kernels": is_ours,
        "adds_up": peers.of(group) is not None,
    }


def main() -> None:
    group = mx.distributed.init()
    dtypes = (mx.bfloat16, mx.float16) if mx.cuda.is_available() else (mx.float32,)
    for dtype in dtypes:
        for bits in (16, 8, 4) if mx.cuda.is_available() else (16, 8):
            answer = compare(group, dtype, bits)
            print(json.dumps({"rank": group.rank(), "size": group.size(), **answer}), flush=True)


if __name__ == "__main__":
    main()
