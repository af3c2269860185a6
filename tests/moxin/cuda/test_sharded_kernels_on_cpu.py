"""The kernels of a sharded decoder's steps, run on the CPU: two processes are two threads."""

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import plain_kernels
import pytest
from cuda_support import assert_as_close, batch_cache, in_float32, make_decoder, unpacked
from kernels_on_cpu import COMPILER
from layers_on_cpu import LENGTH, run_on_cpu
from mlx_vlm.models.moxin.cuda import (
    decoder_layers,
    device,
    exchange,
    fused_batch,
    fused_layers,
    fused_step,
    kernel,
    kv_cache,
    peers,
    precompile,
)
from mlx_vlm.models.moxin.cuda.arranged import Order
from mlx_vlm.models.moxin.cuda.decoder_sizes import read_sizes
from mlx_vlm.models.moxin.cuda.joined_layers import JoinedLayers
from threads_on_cpu import ThreadsOnCpu

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

RANKS = 2
HALF_BYTES = 1 << 17
PADDING = [0, 3, 11, 1, 0, 2, 5, 29]


class Group:
    """Two processes, of which this one has ``rank``."""

    def __init__(self, rank: int):
        self._rank = rank

    def size(self) -> int:
        return RANKS

    def rank(self) -> int:
        return self._rank


@pytest.fixture
def addresses(monkeypatch):
    """Of memory that the processes share."""
    monkeypatch.setattr(peers, "HALF_BYTES", HALF_BYTES)
    mail_bytes = 2 * RANKS * peers.MAIL_ROWS * peers.MAIL_BYTES
    size = peers.PARTS + 2 * HALF_BYTES + mail_bytes
    memory = [np.zeros(size // 8, np.uint64) for _ in range(RANKS)]
    words = [divmod(part.ctypes.data, 1 << 32)[::-1] for part in memory]
    yield mx.array(words, mx.uint32)
    del memory


def connect(group: Group, addresses: mx.array, monkeypatch) -> None:
    found = peers.Peers(addresses, group.rank(), RANKS)
    monkeypatch.setitem(peers._connections, group, found)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("dtype", "bits", "batch", "intermediate"),
    [
        slow(mx.bfloat16, 16, 8, 1280),
        slow(mx.float16, 8, 3, 1280),
        (mx.bfloat16, 4, 3, 512),
        slow(mx.bfloat16, 16, 1, 1024),
        (mx.bfloat16, 4, 1, 1024),
    ],
    ids=["bf16", "8 bits f16", "4 bits", "one sequence, bf16", "one sequence, 4 bits"],
)
def test_two_processes_are_as_close_to_float32_as_the_modules(
    dtype,
    bits,
    batch,
    intermediate,
    addresses,
    on_cpu,
    kernels_everywhere,
    monkeypatch,
    tmp_path,
):
    monkeypatch.setattr(device, "max_shared_memory", lambda: 227 * 1024)
    monkeypatch.setattr(precompile, "run", lambda builds: None)
    padding = PADDING[:batch] if batch > 1 else [3]

    def make():
        return make_decoder(dtype, bits, intermediate_size=intermediate, sliding_window=20)

    def prepare(rank):
        """The launch of a process's kernel for given hidden states."""
        threads, group = run_on_cpu(tmp_path, monkeypatch), Group(rank)
        connect(group, addresses, monkeypatch)
        model = make()
        model.shard(group)
        sizes = read_sizes(model.model)
        layers = JoinedLayers(model.model).read(sizes)
        layers = layers or decoder_layers.read_layers(model.model, sizes)
        cache = batch_cache(LENGTH, padding, dtype)
        heads = slice(rank * sizes.kv_heads, (rank + 1) * sizes.kv_heads)
        arrays = [mx.contiguous(array[:, heads]) for array in kv_cache.held(cache)]
        filled, masked = kv_cache.places(cache, batch)
        form, capacity = layers[0].form, arrays[0].shape[2]
        if batch > 1:
            build, arguments = fused_batch.batch_kernel, (batch, capacity)
        else:
            build, arguments = fused_step.step_kernel, (capacity,)
        fused = build.__wrapped__(sizes, form.formats, len(layers), *arguments, form.is_joined)
        mx.eval(filled, masked, arrays, [layer.arrays for layer in layers])

        def launch(x):
            found = fused_layers.launch(fused, layers, x, filled, arrays, masked, addresses)
            written = [mx.array(array).view(dtype) for array in threads.arrays[-2:]]
            mx.eval(found, written)  # the thread's arrays are no other's until then
            return found, written

        return launch

    launches = [prepare(rank) for rank in range(RANKS)]
    model, plain = make(), unpacked(make())
    rounded = unpacked(make())
    rounded.set_dtype(dtype)
    with ThreadPoolExecutor(RANKS) as pool:
        for first in (7, 100):  # the second launch continues with what the first has left
            inputs = mx.arange(batch)[:, None] + first
            x = model.model.embed_tokens(inputs).flatten(0, 1)
            x = x if batch > 1 else x.flatten()
            mx.eval(x)
            (ours, written), (others, further) = (
                future.result() for future in [pool.submit(launch, x) for launch in launches]
            )
            assert mx.array_equal(ours, others)
            exact, allowed = (
                in_float32(batch_cache(LENGTH, padding)),
                batch_cache(LENGTH, padding, dtype),
            )
            expected = plain.model(inputs, cache=exact).flatten(0, 1)
            states = rounded.model(inputs, cache=allowed).flatten(0, 1)
            assert_as_close(model.model.norm(ours).reshape(expected.shape), states, expected)
            for mine, theirs, name in zip(written, further, ("keys", "values")):
                array = mx.concatenate([mine, theirs], axis=1)
                states = (getattr(cache[-1], name)[:, :, LENGTH] for cache in (allowed, exact))
                assert_as_close(array[:, :, LENGTH], *states)


@pytest.mark.parametrize(
    ("rows", "splits", "order", "blocks"),
    [(5, 3, None, None), (65, 0, None, 3), (65, 2, Order(8, 96), 3)],
    ids=["few rows", "many rows", "many rows, arranged"],
)
def test_sums_and_norms_of_layers_are_those_of_all_parts(
    rows, splits, order, blocks, addresses, on_cpu, kernels_everywhere, monkeypatch, tmp_path
):
    monkeypatch.setattr(device, "multiprocessors", lambda: 3)
    dtype, width, eps, launches = mx.bfloat16, 256, 1e-5, []
    for rank in range(RANKS):
        group = Group(rank)
        connect(group, addresses, monkeypatch)
        monkeypatch.setattr(kernel, "build", ThreadsOnCpu(tmp_path, blocks))
        build = exchange.exchange_norm.__wrapped__
        product = mx.float32 if splits else dtype
        launches.append(build(dtype, rows, width, eps, product, splits, group, order))

    def launch(rank, *arrays):
        found = launches[rank](*arrays, addresses)
        mx.eval(found)
        return found

    mx.random.seed(0)
    weight = 1 + mx.random.normal([width]).astype(dtype)
    with ThreadPoolExecutor(RANKS) as pool:
        for _ in range(3):  # memory is used again
            shape = (splits, rows, width) if splits else (rows, width)
            parts = [mx.random.normal(shape) for _ in range(RANKS)]
            parts = [part if splits else part.astype(dtype) for part in parts]
            residual = mx.random.normal((rows, width)).astype(dtype)
            mx.eval(parts, residual, weight)
            others = [residual] * RANKS, [weight] * RANKS
            (ours, normed), (theirs, again) = pool.map(launch, range(RANKS), parts, *others)
            assert mx.array_equal(ours, theirs)
            assert mx.array_equal(normed, again, equal_nan=True)
            sums = [part.sum(axis=0) if splits else part for part in parts]
            total = sum(part.astype(dtype).astype(mx.float32) for part in sums)
            assert mx.array_equal(ours, (total + residual).astype(dtype))
            if order is not None:
                normed = plain_kernels.out_of_order(normed, order, rows)
            expected = mx.fast.rms_norm(ours.astype(mx.float32), weight.astype(mx.float32), eps)
            assert mx.allclose(normed, expected, rtol=2**-7, atol=2**-7)
