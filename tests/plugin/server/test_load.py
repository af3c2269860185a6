"""What many clients at once need: threads, tokens sent together, pictures computed together."""

import asyncio
import sys
import threading
from queue import Queue
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx_vlm import VisionFeatureCache, load
from mlx_vlm.server.generation import (
    GenerationArguments,
    ResponseGenerator,
    StreamingToken,
    _TokenIterator,
)
from support import HF_CHECKPOINT, IMAGE_NAMES, PROMPTS, image_path

from mlx_vlm_moxin.plugin.server import first_use, request_threads, token_blocks
from mlx_vlm_moxin.plugin.server.generator import MoxinResponseGenerator
from mlx_vlm_moxin.plugin.server.picture_features import FEATURES, PictureFeatures
from mlx_vlm_moxin.plugin.server.sampling import Row, RowSampler, draw
from mlx_vlm_moxin.plugin.server.token_blocks import TokenBlocks


def test_more_requests_than_asyncio_has_threads_wait_at_the_same_time():
    everyone = threading.Barrier(100)

    async def wait_together():
        request_threads.provide()
        request_threads.provide()
        await asyncio.gather(
            *(asyncio.to_thread(everyone.wait, timeout=60) for _ in range(everyone.parties))
        )

    asyncio.run(wait_together())
    assert not everyone.broken


def token(text: str, finish_reason: str | None = None) -> StreamingToken:
    return StreamingToken(text=text, token=ord(text[-1]), logprobs=0.0, finish_reason=finish_reason)


def blocks(*items) -> TokenBlocks:
    queue = Queue()
    for item in items:
        queue.put(item)
    return TokenBlocks(_TokenIterator(queue, 0, lambda uid: None, 10), queue)


def test_tokens_that_wait_are_sent_together_with_their_count():
    (block,) = blocks(token("a"), token("b"), token("c", "length"), None)
    assert (block.text, block.token_count, block.finish_reason) == ("abc", 3, "length")
    assert block.token == ord("c")


def test_tokens_before_an_error_or_the_end_are_sent_first():
    failing = blocks(token("a"), token("b"), RuntimeError("a reason"))
    assert next(failing).text == "ab"
    with pytest.raises(RuntimeError, match="a reason"):
        next(failing)
    assert [block.text for block in blocks(token("a"), None)] == ["a"]


def test_a_token_alone_is_sent_as_it_is():
    alone = token("a", "stop")
    assert next(blocks(alone)) is alone


@pytest.mark.parametrize(("requests", "pause"), [(1, 0), (32, 0.031)])
def test_the_pause_between_blocks_grows_with_the_number_of_requests(requests, pause, monkeypatch):
    slept, now = [], 100.0
    monkeypatch.setattr(token_blocks, "count_requests", lambda: requests)
    monkeypatch.setattr(
        token_blocks, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: now)
    )
    stream = blocks(token("a"))
    next(stream)
    stream._queue.put(token("b"))
    next(stream)
    assert slept == ([pytest.approx(pause)] if pause else [])


class Draws:
    """A sampler that records its calls, and draws the token with the number of its position."""

    def __init__(self):
        self.calls = []

    def draw(self, logprobs, seeds, positions):
        self.calls.append((logprobs.shape[0], seeds))
        return mx.array(positions, mx.uint32)


def test_rows_with_the_same_sampler_are_drawn_together_in_their_order():
    first, second = Draws(), Draws()
    rows = [Row(first, 5), Row(second, 6), Row(None), Row(first, 7), Row(second, 8)]
    logprobs = mx.zeros((5, 9)).at[2, 7].add(1)
    assert draw(logprobs, rows, [0, 0, 0, 4, 0]).tolist() == [0, 0, 7, 4, 0]
    assert first.calls == [(2, [5, 7])]
    assert second.calls == [(2, [6, 8])]


def test_requests_that_differ_only_in_their_seeds_share_a_sampler():
    rows = RowSampler(None)
    one, other, warmer = (
        rows.row(GenerationArguments(temperature=temperature, seed=seed))
        for temperature, seed in [(0.5, 1), (0.5, 2), (0.6, 1)]
    )
    assert one.sampler is other.sampler
    assert one.sampler is not warmer.sampler
    assert (one.seed, other.seed) == (1, 2)
    assert rows.row(GenerationArguments(temperature=0)).sampler is None


def test_samplers_are_not_kept_without_a_request():
    rows = RowSampler(None)
    rows.row(GenerationArguments(temperature=0.5, seed=1))
    assert len(rows._samplers) == 0


@pytest.fixture
def stepped(monkeypatch):
    """A generator, and the arguments with which it calls mlx-vlm's step."""
    steps = []
    monkeypatch.setattr(ResponseGenerator, "_step", lambda self, *args: steps.append(args))
    generator = MoxinResponseGenerator.__new__(MoxinResponseGenerator)
    generator._row_sampler = RowSampler(None)
    return generator, steps


def test_a_step_knows_each_rows_settings(stepped, monkeypatch):
    generator, steps = stepped
    batches = SimpleNamespace(completion_batch_size=32)
    active = {
        uid: {"args": GenerationArguments(temperature=0.5, seed=seed)}
        for uid, seed in [(3, 30), (5, 50)]
    }
    generator._step(batches, active)
    first = active[3]["row"]
    generator._step(batches, active)
    assert steps == [(batches, active)] * 2
    assert generator._row_sampler._rows == {3: first, 5: active[5]["row"]}
    assert [row.seed for row in generator._row_sampler._rows.values()] == [30, 50]
    assert active[3]["row"] is first


@pytest.mark.parametrize(("limit", "size"), [("", 32), ("16", 32), ("64", 64)])
def test_a_higher_limit_of_requests_makes_larger_batches(stepped, limit, size, monkeypatch):
    monkeypatch.setenv("MLX_VLM_MAX_NUM_SEQS", limit)
    batches = SimpleNamespace(completion_batch_size=32)
    stepped[0]._step(batches, {})
    assert batches.completion_batch_size == size


def request(processor, name: str, prompt: str) -> SimpleNamespace:
    picture = processor.prepare_picture(image_path(name))
    return SimpleNamespace(raw_inputs=processor(prompt, [picture]), images=[picture])


@pytest.mark.parametrize("has_cache", [True, False])
def test_pictures_of_joining_requests_are_computed_in_one_batch(
    model, processor, has_cache, monkeypatch
):
    requests = [
        request(processor, name, PROMPTS[0]["prompt"])
        for name in (*IMAGE_NAMES[:2], IMAGE_NAMES[0])
    ]
    cache = VisionFeatureCache(1) if has_cache else None
    generator = PictureFeatures.__new__(PictureFeatures)
    generator.model, generator.vision_cache, generator._joining = model, cache, requests
    batches, encode = [], type(model).encode_image
    monkeypatch.setattr(
        type(model),
        "encode_image",
        lambda self, pixels: batches.append(len(pixels)) or encode(self, pixels),
    )
    found = [generator._gpu_embed(r.raw_inputs, r.images) for r in requests]
    assert batches == [2]
    for r, (ids, embeddings) in zip(requests, found):
        inputs = {name: value for name, value in r.raw_inputs.items() if name != FEATURES}
        expected = model.get_input_embeddings(inputs["input_ids"], inputs["pixel_values"])
        assert mx.allclose(embeddings["inputs_embeds"], expected.inputs_embeds, atol=1e-5).item()
        assert FEATURES not in embeddings
        assert ids is inputs["input_ids"]
    generator._joining = ()
    again = request(processor, IMAGE_NAMES[1], PROMPTS[1]["prompt"])
    batches.clear()
    generator._gpu_embed(again.raw_inputs, again.images)
    assert batches == ([] if has_cache else [1])
    assert FEATURES in again.raw_inputs


def test_what_mlx_compiles_for_a_batch_is_compiled_while_weights_are_read(monkeypatch):
    builds, taken = [], []
    monkeypatch.setattr(first_use.precompile, "run", builds.extend)
    weights = {"language_model.model.embed_tokens.weight": mx.zeros((2, 2), mx.bfloat16)}
    first_use.compile_for(weights)
    assert builds == []  # without a GPU
    monkeypatch.setattr(first_use.device, "enabled", lambda: True)
    first_use.compile_for(weights)
    (build,) = builds
    monkeypatch.setattr(mx, "eval", lambda array: taken.append((array.dtype, array.tolist())))
    build()
    assert taken == [(mx.bfloat16, [[0]]), (mx.int32, [[0]]), (mx.uint32, [[0]])]


@pytest.mark.parametrize("is_server", [True, False])
def test_only_a_server_prepares_for_batches(is_server, monkeypatch):
    prepared = []
    monkeypatch.setattr(first_use, "compile_for", prepared.append)
    if not is_server:
        monkeypatch.delitem(sys.modules, "mlx_vlm.server")
    load(str(HF_CHECKPOINT))
    assert len(prepared) == is_server
