"""Decoders that are sharded over processes: the kernels give what the whole decoder gives."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import plain_kernels
import pytest
from cuda_support import (
    MAX_ERROR_RATIO,
    filled_cache,
    make_decoder,
    needs_gpu,
    recording,
    uses_kernels,
)
from mlx_vlm.models.cache import KVCache
from mlx_vlm.models.moxin.cuda import decoder_layers, kernel, kv_cache, peers, precompile
from mlx_vlm.models.moxin.cuda.decoder_layers import read_layers
from mlx_vlm.models.moxin.cuda.decoder_sizes import read_sizes
from mlx_vlm.models.moxin.cuda.fused_prompt import FusedPrompt
from server_process import free_port

SCRIPT = Path(__file__).with_name("sharded_decoder.py")
TESTS = Path(__file__).parents[2]
# On two quiet GPUs most of it is for kernels that MLX compiles.
LIMIT_S = 180


def launch(backend: str, kind: str, **environment: str) -> list[dict]:
    """Output of two processes of ``sharded_decoder.py``, started as by mlx.launch.

    Ends them after ``LIMIT_S`` and then fails. What they reach is on stderr meanwhile.
    """
    command = [sys.executable, "-c", "from mlx._distributed_utils.launch import main; main()"]
    command += ["-n", "2"]
    command += ["--backend", backend, "--starting-port", str(free_port())]
    command += ["--nccl-port", str(free_port()), "--", sys.executable, str(SCRIPT), kind]
    paths = os.pathsep.join([str(TESTS), str(SCRIPT.parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, **environment}
    # A stdin that does not end: mlx.launch reads one that has ended again and again.
    stdin, unused = os.pipe()
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=stdin,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the launcher's processes too
        output, _ = process.communicate()
        pytest.fail(f"not finished after {LIMIT_S} s:\n{output[-2000:]}")
    finally:
        os.close(stdin)
        os.close(unused)
    answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert answers, output
    return answers


@pytest.mark.slow
def test_two_processes_compute_what_one_computes():
    answers = launch("ring", "cpu")
    assert sorted((answer["rank"], answer["bits"]) for answer in answers) == [
        (rank, bits) for rank in (0, 1) for bits in (8, 16)
    ]
    for answer in answers:
        assert answer["uses_kernels"]
        assert not answer["adds_up"]
        assert answer["heads"] == [4, 4]
        assert max(answer["errors"]) < 1e-5


def assert_close_to_one_process(answers: list[dict], formats: int) -> None:
    assert len(answers) == 2 * formats
    for answer in answers:
        assert answer["uses_kernels"]
        assert answer["adds_up"]
        for error, allowed in zip(answer["errors"], answer["allowed"]):
            assert error <= MAX_ERROR_RATIO * allowed
    # Both processes add the same parts in the same order.
    by_rank = [[row["errors"] for row in answers if row["rank"] == rank] for rank in (0, 1)]
    assert by_rank[0] == by_rank[1]


@pytest.mark.skipif(mx.device_count(mx.gpu) < 2, reason="needs two NVIDIA GPUs")
def test_two_gpus_compute_what_one_computes():
    assert_close_to_one_process(launch("nccl", "gpus"), formats=6)


@needs_gpu
def test_two_processes_on_one_gpu_compute_what_one_computes():
    # NCCL refuses two processes on a GPU; the ring backend connects them through the host.
    assert_close_to_one_process(launch("ring", "one-gpu"), formats=2)


@pytest.mark.slow
def test_processes_that_do_not_finish_are_ended_and_say_where_they_were(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "LIMIT_S", 0.1)
    with pytest.raises(pytest.fail.Exception, match=r"not finished after 0\.1 s"):
        launch("ring", "cpu")


class Group:
    """Rank 0 of a group of two processes, of which the other does not exist."""

    def size(self):
        return 2

    def rank(self):
        return 0


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    monkeypatch.setattr(precompile, "run", lambda builds: None)


def sharded(group=None, **options):
    model = make_decoder(**{"intermediate_size": 1024} | options)
    model.shard(group or Group())
    return model


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_shard_is_read_with_its_own_heads_and_columns(bits):
    group = Group()
    model = sharded(group, bits=bits)
    sizes = read_sizes(model.model)
    assert (sizes.heads, sizes.kv_heads, sizes.intermediate) == (4, 1, 512)
    assert sizes.group is group
    qkv, output, _, down = read_layers(model.model, sizes)[0].projections
    assert qkv.rows == (256, 64, 64)
    assert down.rows == output.rows == (256,)


def test_a_whole_decoder_has_no_group():
    assert read_sizes(make_decoder().model).group is None


def plain(layer):
    """A whole matrix with the shard's values."""
    linear = nn.Linear(*reversed(layer.weight.shape), bias=False)
    linear.weight = layer.weight
    return linear


SHARD_CHANGES = {
    "whole product": lambda layer: setattr(layer.mlp, "up_proj", plain(layer.mlp.up_proj)),
    "whole sum": lambda layer: setattr(layer.mlp, "down_proj", plain(layer.mlp.down_proj)),
    "product for sum": lambda layer: setattr(layer.mlp, "down_proj", layer.self_attn.q_proj),
    "group": lambda layer: setattr(layer.self_attn.k_proj, "group", Group()),
    "bias": lambda layer: setattr(layer.self_attn.o_proj, "bias", mx.zeros(256, mx.bfloat16)),
    "heads": lambda layer: setattr(layer.self_attn, "n_heads", 8),
}


@pytest.mark.parametrize("change", SHARD_CHANGES.values(), ids=SHARD_CHANGES.keys())
def test_layers_that_are_sharded_in_another_way_are_left_to_the_modules(change):
    model = sharded()
    assert decoder_layers.supports(model.model)
    change(model.layers[1])
    assert not decoder_layers.supports(model.model)


def connected(group, monkeypatch, size=2):
    addresses = mx.zeros((size, 2), mx.uint32)
    monkeypatch.setitem(peers._connections, group, peers.Peers(addresses, group.rank(), size))


@pytest.mark.parametrize("adds_up", [True, False])
def test_a_token_is_one_launch_only_if_the_gpus_can_add_up(
    adds_up, kernels_everywhere, monkeypatch
):
    calls, group = [], Group()
    if adds_up:
        connected(group, monkeypatch)
    monkeypatch.setattr(kernel, "build", recording(calls))
    monkeypatch.setattr(kv_cache, "gather_caches", plain_kernels.gather_caches)
    monkeypatch.setattr(mx.distributed, "all_sum", lambda x, group: x)
    model, cache = sharded(group), filled_cache(10)
    for layer in cache:
        layer.keys, layer.values = layer.keys[:, :1], layer.values[:, :1]
    logits = model(mx.array([[5]]), cache=cache).logits
    mx.eval(logits)
    assert uses_kernels(model)
    assert set(calls) & {"sharded_step", "fused_step", "exchange_norm", "add_norm"} == (
        {"sharded_step"} if adds_up else {"add_norm"}
    )


@pytest.mark.parametrize(
    ("shape", "entry"),
    [((1, 70), "exchange_norm"), ((1, 20), "exchange_rows")],
    ids=["many", "few"],
)
def test_prompts_add_up_in_the_kernel_after_each_product(
    shape, entry, kernels_everywhere, monkeypatch
):
    calls, group = [], Group()
    connected(group, monkeypatch)
    monkeypatch.setattr(kernel, "build", recording(calls))
    monkeypatch.setattr(kv_cache, "gather_caches", plain_kernels.gather_caches)
    model = sharded(group)
    mx.eval(model(mx.ones(shape, mx.int32), cache=[KVCache(), KVCache()]).logits)
    assert "add_norm" not in calls
    # All layers are one graph, which is traced once.
    assert calls.count(entry) == 2


@pytest.mark.parametrize(
    ("batch", "adds_up", "sums"),
    [
        (8, True, {"sharded_batch"}),
        (8, False, {"add_norm"}),
        (9, True, {"exchange_rows"}),
    ],
)
def test_steps_of_up_to_eight_sequences_are_few_launches_if_the_gpus_can_add_up(
    batch, adds_up, sums, kernels_everywhere, monkeypatch
):
    calls, group = [], Group()
    if adds_up:
        connected(group, monkeypatch)
    monkeypatch.setattr(kv_cache, "gather_caches", plain_kernels.gather_caches)
    monkeypatch.setattr(mx.distributed, "all_sum", lambda x, group: x)
    monkeypatch.setattr(kernel, "build", recording(calls))
    model, cache = sharded(group, intermediate_size=1024), filled_cache(10, batch=batch)
    for layer in cache:
        layer.keys, layer.values = layer.keys[:, :1], layer.values[:, :1]
    mx.eval(model(mx.ones((batch, 1), mx.int32), cache=cache).logits)
    assert uses_kernels(model)
    kinds = {"sharded_batch", "fused_batch", "exchange_norm", "exchange_rows", "add_norm"}
    assert set(calls) & kinds == sums


def test_a_sum_for_which_there_is_no_room_is_left_to_mlx(kernels_everywhere, monkeypatch):
    group, sums = Group(), []
    connected(group, monkeypatch)
    monkeypatch.setattr(peers, "HALF_BYTES", 2 * 20 * 256 * 2 - 1)
    monkeypatch.setattr(kernel, "build", recording([]))
    monkeypatch.setattr(kv_cache, "gather_caches", plain_kernels.gather_caches)
    monkeypatch.setattr(mx.distributed, "all_sum", lambda x, group: sums.append(x.shape) or x)
    mx.eval(sharded(group)(mx.ones((1, 20), mx.int32), cache=[KVCache(), KVCache()]).logits)
    assert sums == 2 * [(20, 256)]


def test_short_prompts_of_a_shard_have_no_single_launch(kernels_everywhere):
    model = sharded()
    run, sizes = FusedPrompt(model.model, model.lm_head), read_sizes(model.model)
    arguments = mx.ones((1, 5), mx.int32), None, [KVCache(), KVCache()]
    assert not run.supports(*arguments, sizes)
    assert run.supports(*arguments, sizes._replace(group=None))


@pytest.mark.parametrize("adds_up", [True, False])
def test_a_shard_compiles_what_it_uses(adds_up, kernels_everywhere, monkeypatch):
    built, group = [], Group()
    if adds_up:
        connected(group, monkeypatch)
    monkeypatch.setattr(precompile, "run", built.extend)
    sharded(group)
    names = {build.func.__name__ for build in built}
    sums = {"step_kernel", "batch_kernel", "exchange_norm"} if adds_up else {"add_norm"}
    kinds = {"step_kernel", "batch_kernel", "exchange_norm", "add_norm", "prompt_kernel"}
    assert names & kinds == sums
    assert {"multiply", "attend", "rotate", "gather_caches"} <= names


OFFER = peers._Offer(True, b"machine".ljust(200, b"\0"), bytes(64), bytes(64))
OTHER = OFFER._replace(machine=b"another".ljust(200, b"\0"))


@pytest.mark.parametrize(
    ("mine", "theirs", "answer", "is_mapped", "is_connected"),
    [
        (OFFER, OFFER, True, True, True),
        (peers._Offer(False), OFFER, False, True, False),
        (OFFER, peers._Offer(False), False, True, False),
        (OFFER, OTHER, False, True, False),
        (OFFER, OFFER, True, False, False),
        (OFFER, OFFER, False, True, False),
    ],
    ids=["both", "not here", "not there", "other machine", "not mapped", "not mapped there"],
)
def test_all_processes_share_memory_or_none(
    mine, theirs, answer, is_mapped, is_connected, monkeypatch
):
    said, answers = [], iter([theirs, peers._Offer(answer)])

    def exchange(self, group):
        said.append(self.is_ready)
        return [self, next(answers)]

    def map_memory(offer):
        if not is_mapped:
            raise RuntimeError("invalid resource handle")
        return 0x7F18_CCC0_0000

    group = Group()
    monkeypatch.setattr(peers, "_connections", {})
    monkeypatch.setattr(mx.distributed, "init", lambda: group)
    monkeypatch.setattr(peers, "_prepare", lambda: (0x7F17_7C00_0000, mine))
    monkeypatch.setattr(peers._Offer, "exchange", exchange)
    monkeypatch.setattr(peers, "_map", map_memory)
    peers.connect(group)
    # Each process sends its state twice, since otherwise the others would wait.
    assert len(said) == 2
    assert said[1] == (mine is OFFER and theirs is OFFER and is_mapped)
    found = peers.of(group)
    assert (found is not None) == is_connected
    if found is not None:
        assert found.addresses.tolist() == [[0x7C00_0000, 0x7F17], [0xCCC0_0000, 0x7F18]]
        assert (found.rank, found.size) == (0, 2)


def test_a_group_of_some_processes_shares_no_memory(monkeypatch):
    monkeypatch.setattr(peers._Offer, "exchange", lambda *arguments: pytest.fail("waits"))
    peers.connect(Group())  # of two processes, and here is one


def test_without_a_gpu_no_memory_is_offered():
    if not mx.cuda.is_available():
        assert peers._prepare() == (0, peers._Offer(False))
