"""The kernels compiled while weights are read are those used afterwards."""

import ctypes
import threading
from types import SimpleNamespace

import mlx.core as mx
import pytest
from cuda_support import forget_kernels, make_decoder, recording
from mlx_vlm import load
from mlx_vlm.models.cache import BatchKVCache, KVCache
from mlx_vlm.models.moxin.cuda import decoder_builds, device, host_memory, kernel, precompile
from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor
from PIL import Image
from support import HF_CHECKPOINT
from test_towers import make_model

LAYERS = 20


@pytest.fixture
def built(kernels_everywhere, monkeypatch):
    """Files and constants of the compiled kernels, without the sizes of a launch."""
    found, build = set(), recording([])

    def record(entry, constants, inputs, outputs, scalars, **options):
        macros = options.get("macros") or {}
        found.add((entry, tuple(constants.items()), tuple(macros.items())))
        return build(entry, constants, inputs, outputs, scalars, **options)

    monkeypatch.setattr(kernel, "build", record)
    memory = ctypes.create_string_buffer(host_memory.MIN_BYTES)
    monkeypatch.setattr(host_memory, "_allocate", lambda size: ctypes.addressof(memory))
    monkeypatch.setattr(host_memory, "buffers", host_memory.Buffers())
    return found


def make(bits, intermediate):
    decoder = make_decoder(bits=bits, num_hidden_layers=LAYERS, intermediate_size=intermediate)
    actions = SimpleNamespace(decoding="parallel", causal=False)
    return SimpleNamespace(
        vision_tower=make_model(),
        language_model=decoder,
        config=SimpleNamespace(action_config=actions),
    )


def caches(make_cache):
    return [make_cache() for _ in range(LAYERS)]


def use(model):
    """Pictures and a question, an answer, another question, a batch, and a chunk of actions."""
    size = model.vision_tower.config.image_size
    pixels = MoxinImageProcessor(size).process(Image.new("RGB", (30, 20))).pixel_values
    for count in (1, 4, 30):
        model.vision_tower(mx.repeat(pixels, count, axis=0))
    decoder, cache = model.language_model, caches(KVCache)
    for length in (decoder_builds.PROMPT, 1, decoder_builds.QUESTION, 1, 9, 60, 1):
        decoder(mx.zeros((1, length), mx.int32), cache=cache, logits_to_keep=1)
    batch = caches(lambda: BatchKVCache(8 * [0]))
    for length in (40, 1, 1):
        decoder(mx.zeros((8, length), mx.int32), cache=batch, logits_to_keep=1)
    whole, kept = mx.zeros((1, 600, 256), mx.bfloat16), slice(-58, -2)
    assert decoder.engine_hidden_states(whole, False, kept) is not None


@pytest.mark.parametrize(("bits", "intermediate"), [(16, 640), (16, 512), (8, 640), (8, 512)])
def test_every_kernel_that_is_used_was_compiled(bits, intermediate, built, monkeypatch):
    monkeypatch.setattr(device, "has_warpgroups", lambda: True)
    model = make(bits, intermediate)
    for build in precompile.builds(model):
        build()
    compiled = set(built)
    built.clear()
    forget_kernels()
    use(model)
    assert built
    assert built <= compiled


@pytest.mark.parametrize("length", [258, 272, 277, 288, 289, 300, 305, 320])
@pytest.mark.parametrize("bits", [16, 4])
def test_a_first_answer_does_not_wait_for_kernels_of_other_prompts(
    bits, length, built, monkeypatch
):
    monkeypatch.setattr(device, "has_warpgroups", lambda: True)
    decoder = make(bits, 512).language_model
    for build in decoder_builds.decoder_builds(decoder.model, decoder.lm_head):
        build()
    first, cache = set(built), caches(KVCache)
    built.clear()
    forget_kernels()
    for tokens in (length, 1):
        decoder(mx.zeros((1, tokens), mx.int32), cache=cache, logits_to_keep=1)
    assert {entry for entry, *_ in built} >= {"prompt_matmul", "fused_step"}
    assert {used for used in built if used[0] != "embed_tokens"} <= first


def test_kernels_of_prompts_of_other_lengths_are_compiled_last(built, monkeypatch):
    monkeypatch.setattr(device, "has_warpgroups", lambda: True)
    model = make(16, 512)
    others = list(decoder_builds.prompt_builds(model.language_model.model))
    last = list(precompile.builds(model))[-len(others) :]
    assert len(others) > 50
    assert [(found.func, found.args) for found in last] == [(b.func, b.args) for b in others]


def test_a_model_that_is_not_supported_compiles_nothing(built):
    model = SimpleNamespace(
        vision_tower=make_model(mx.float32), language_model=make_decoder(mx.float32)
    )
    assert not list(precompile.builds(model))
    assert not list(precompile.builds(SimpleNamespace(vision_tower=None)))


def test_a_failure_is_reported_when_the_kernel_is_used():
    done = threading.Event()

    def fail():
        raise RuntimeError("does not compile")

    precompile.run([fail, fail, done.set])
    assert done.wait(10)


def test_a_process_that_ends_waits_for_builds_that_run_and_drops_the_rest(monkeypatch):
    monkeypatch.setattr(precompile, "MAX_THREADS", 1)
    begun, may_end, results = threading.Event(), threading.Event(), []

    def compile_slowly():
        begun.set()
        may_end.wait(10)
        results.append("compiled")

    precompile.run([compile_slowly, lambda: results.append("dropped")])
    assert begun.wait(10)
    threading.Timer(0.1, may_end.set).start()
    precompile.stop()
    assert results == ["compiled"]


def test_loading_weights_starts_compiling(monkeypatch):
    started = []
    monkeypatch.setattr(precompile, "start", started.append)
    model, _ = load(str(HF_CHECKPOINT), lazy=True)
    assert [id(found) for found in started] == [id(model)]
