"""Run by ``mlx.launch``: a decoder sharded over processes, compared with a whole one.

With ``cpu`` as its argument the kernels are replaced by MLX in float32. They run with ``gpus``, a
GPU for each process, and with ``one-gpu``, in fewer formats: all processes share it, and while one
waits for another's part, the GPU has to switch between them.

Prints a line of JSON per decoder: the error of its logits compared with float32, that of MLX's
modules for the whole decoder, whether the kernels were used, and whether they add up over GPUs
without MLX. On standard error it says what it is about to do.
"""

import json
import sys
import time

import mlx.core as mx
import plain_kernels
import pytest
from cuda_support import (
    computing_on,
    empty,
    make_decoder,
    relative_error,
    run,
    unpacked,
    uses_kernels,
)
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
FORMATS = {
    "cpu": [(mx.float32, 16), (mx.float32, 8)],
    "gpus": [(dtype, bits) for dtype in (mx.bfloat16, mx.float16) for bits in (16, 8, 4)],
    "one-gpu": [(mx.bfloat16, 16), (mx.bfloat16, 4)],
}
START = time.monotonic()


def say(*stage: object) -> None:
    times = f"{time.monotonic() - START:.1f} s, {time.process_time():.1f} s of CPU time:"
    print(times, *stage, file=sys.stderr, flush=True)


def use_stand_ins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(device, "enabled", lambda: True)
    patch.setattr(device, "attribute", lambda number: 227 * 1024)
    plain_kernels.use(patch)


def logits(model) -> list[mx.array]:
    found = [run(model, empty(), shapes) for shapes in PASSES]
    mx.eval(found)
    return found


def in_float32(model) -> list[mx.array]:
    """Logits on the CPU: MLX would compile its kernels for float32 on the GPU for half a minute."""
    with computing_on(mx.cpu):
        return logits(unpacked(model))


def compare(group: mx.distributed.Group, dtype: mx.Dtype, bits: int, is_gpu: bool) -> dict:
    what = f"rank {group.rank()}, {dtype}, {bits} bits:"
    model = make_decoder(dtype, bits, **CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "enabled", lambda: False)
        say(what, "the whole decoder in float32")
        expected = in_float32(model)
        allowed = expected
        if dtype != mx.float32:
            say(what, "the whole decoder by MLX's modules")
            rounded = unpacked(model)
            rounded.set_dtype(dtype)
            allowed = logits(rounded)
    say(what, "sharding")
    model.shard(group)
    with pytest.MonkeyPatch.context() as patch:
        if not is_gpu:
            use_stand_ins(patch)
        say(what, "the sharded decoder")
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
    (kind,) = sys.argv[1:]
    if kind == "cpu":
        mx.set_default_device(mx.cpu)
    say("connecting")
    group = mx.distributed.init(strict=True)
    mx.eval(mx.distributed.all_sum(mx.ones(1), group=group))
    for dtype, bits in FORMATS[kind]:
        answer = compare(group, dtype, bits, kind != "cpu")
        print(json.dumps({"rank": group.rank(), "size": group.size(), **answer}), flush=True)


if __name__ == "__main__":
    main()
