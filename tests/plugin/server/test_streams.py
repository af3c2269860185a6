"""What requests and the tokens of streams cost the event loop: no threads, no second copies."""

import asyncio
import importlib
import json
import threading
from queue import Queue
from types import SimpleNamespace

import pytest
from bodies import CHAT, ENDPOINTS, MESSAGES_API, RESPONSES, body, delta_text
from mlx_vlm.server.generation import StreamingToken, _TokenIterator
from starlette.testclient import TestClient
from support import HF_CHECKPOINT

from mlx_vlm_moxin.plugin.server import arrivals, gate, request_threads, token_blocks
from mlx_vlm_moxin.plugin.server.token_blocks import TokenBlocks, WholeAnswer

COMPLETIONS = "/v1/completions"
TOKENS = 12


def token(text: str, finish_reason: str | None = None) -> StreamingToken:
    return StreamingToken(text=text, token=ord(text[-1]), logprobs=0.0, finish_reason=finish_reason)


class Answer:
    """An answer whose tokens the test puts; ``read`` is what an endpoint calls in a thread."""

    def __init__(self):
        self.queue: Queue = Queue()
        iterator = _TokenIterator(self.queue, 0, lambda uid: None, 10)
        tokens = self.tokens = TokenBlocks(iterator, self.queue)

        def next_token():
            self.thread = threading.current_thread()
            return next(tokens, None)

        self.read = next_token

    def put(self, *items) -> None:
        """Put ``items`` and announce them, in another thread."""

        def generate():
            for item in items:
                self.queue.put(item)
            arrivals.announce()

        thread = threading.Thread(target=generate)
        thread.start()
        thread.join()


async def settle() -> None:
    """Let everything that can run without waiting run."""
    for _ in range(20):
        await asyncio.sleep(0)


endpoint_asyncio = request_threads.asyncio_of_endpoints(asyncio)


def test_an_answers_tokens_are_waited_for_without_a_thread():
    async def run():
        answer, other = Answer(), Answer()
        waiting = asyncio.create_task(endpoint_asyncio.to_thread(answer.read))
        await settle()
        other.put(token("x"))
        await settle()
        assert not waiting.done()
        answer.put(token("a"), token("b"))
        block = await waiting
        assert block.text == "ab"
        assert answer.thread is threading.current_thread()
        assert not arrivals._waiting

    asyncio.run(run())


def test_an_error_and_the_end_are_passed_on():
    async def run():
        failing, ended = Answer(), Answer()
        reading = [
            asyncio.create_task(endpoint_asyncio.to_thread(answer.read))
            for answer in (failing, ended)
        ]
        await settle()
        failing.put(RuntimeError("a reason"))
        ended.put(None)
        with pytest.raises(RuntimeError, match="a reason"):
            await reading[0]
        assert await reading[1] is None
        # Reading on after the end does not wait for what never comes.
        assert await endpoint_asyncio.to_thread(ended.read) is None

    asyncio.run(run())


def test_other_functions_run_in_a_thread():
    async def run():
        unset = None

        def other():
            return unset, threading.current_thread()

        assert (await endpoint_asyncio.to_thread(other))[1] is not threading.current_thread()
        assert await endpoint_asyncio.to_thread(max, 1, 2) == 2
        assert endpoint_asyncio.sleep is asyncio.sleep

    asyncio.run(run())


def test_a_request_whose_client_leaves_waits_no_longer():
    async def run():
        answer = Answer()
        waiting = asyncio.create_task(endpoint_asyncio.to_thread(answer.read))
        await settle()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not arrivals._waiting
        answer.put(token("a"))

    asyncio.run(run())


def test_an_answer_without_tokens_for_long_waits_in_a_thread_with_mlx_vlms_limit(monkeypatch):
    monkeypatch.setattr(arrivals, "LONGEST_WAIT", 0.01)

    async def run():
        answer = Answer()
        answer.tokens._tokens._queue_timeout = 0.01
        with pytest.raises(RuntimeError, match=r"Timed out waiting for 0.01s"):
            await endpoint_asyncio.to_thread(answer.read)
        assert answer.thread is not threading.current_thread()

    asyncio.run(run())


def test_a_stream_pauses_after_a_block_but_not_before_its_last_one(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(token_blocks, "count_requests", lambda: 3)
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: pytest.fail("sleeps"))
    monkeypatch.setattr(token_blocks, "time", clock)

    async def run():
        answer = Answer()

        async def read_after(*items):
            waiting = asyncio.create_task(endpoint_asyncio.to_thread(answer.read))
            answer.put(*items)
            await settle()
            return waiting

        assert (await read_after(token("a"))).result().text == "a"
        waiting = await read_after(token("b"))
        assert not waiting.done()
        now[0] += 2 * token_blocks.INTERVAL_PER_REQUEST + 1e-6
        answer.put(token("c"))
        assert (await waiting).text == "bc"
        assert (await read_after(token("d"), token("e", "stop"))).result().text == "de"

    asyncio.run(run())


def test_a_whole_answer_is_waited_for_once(monkeypatch):
    waits, wait = [], arrivals.wait_in_thread
    monkeypatch.setattr(arrivals, "wait_in_thread", lambda end: waits.append(end) or wait(end))
    queue: Queue = Queue()
    read: list[StreamingToken] = []
    answer = WholeAnswer(_TokenIterator(queue, 0, lambda uid: None, 10), queue)
    reader = threading.Thread(target=lambda: read.extend(answer))
    reader.start()
    for item in (token("a"), token("b"), token("c", "length"), None):
        assert not read
        queue.put(item)
        arrivals.announce()
    reader.join()
    assert [one.text for one in read] == ["a", "b", "c"]
    assert len(waits) == 1
    assert not arrivals._waiting


def test_an_error_ends_a_whole_answer():
    queue: Queue = Queue()
    answer = WholeAnswer(_TokenIterator(queue, 0, lambda uid: None, 10), queue)
    queue.put(token("a"))
    queue.put(RuntimeError("a reason"))
    assert next(answer).text == "a"
    with pytest.raises(RuntimeError, match="a reason"):
        next(answer)


def test_a_whole_answer_that_takes_long_is_waited_for_with_mlx_vlms_limit(monkeypatch):
    monkeypatch.setattr(arrivals, "LONGEST_WAIT", 0.01)
    queue: Queue = Queue()
    answer = WholeAnswer(_TokenIterator(queue, 0, lambda uid: None, 0.01), queue)
    queue.put(token("a"))
    assert next(answer).text == "a"
    with pytest.raises(RuntimeError, match=r"Timed out waiting for 0.01s"):
        next(answer)


@pytest.fixture(scope="module")
def client():
    """mlx-vlm's server in this process, with Moxin loaded."""
    server = importlib.import_module("mlx_vlm.server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_VLM_PRELOAD_MODEL", str(HF_CHECKPOINT))
        with TestClient(server.app) as client:
            yield client
            server.unload_model_sync()


def texts(client: TestClient, endpoint: str, **parameters) -> list[str]:
    """The texts of the chunks of a streamed answer."""
    request = body(endpoint, str(HF_CHECKPOINT), "What is shown?", max_tokens=TOKENS, stream=True)
    if endpoint == COMPLETIONS:
        request["prompt"] = "In: What is shown?\nOut:"
    found = []
    for line in client.post(endpoint, json={**request, **parameters}).text.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            text = delta_text(endpoint, event) if endpoint != COMPLETIONS else None
            if endpoint == COMPLETIONS and event["choices"]:
                text = event["choices"][0]["text"]
            found += [text] if text else []
    return found


@pytest.mark.parametrize("endpoint", [*ENDPOINTS, COMPLETIONS])
def test_with_other_requests_tokens_that_wait_are_one_chunk(client, endpoint, monkeypatch):
    alone = texts(client, endpoint)
    # Other requests, which make the pause longer than the answer.
    monkeypatch.setattr(token_blocks, "count_requests", lambda: 100_000)
    together = texts(client, endpoint)
    assert "".join(together) == "".join(alone)
    assert len(together) == 2


def test_log_probabilities_are_sent_token_by_token(client, monkeypatch):
    monkeypatch.setattr(token_blocks, "count_requests", lambda: 100_000)
    request = body(CHAT, str(HF_CHECKPOINT), "What is shown?", max_tokens=TOKENS, stream=True)
    answer = client.post(CHAT, json={**request, "logprobs": True}).text
    events = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    content = [event["choices"][0].get("logprobs") for event in events if event["choices"]]
    assert [len(one["content"]) for one in content if one] == [1] * TOKENS


@pytest.mark.parametrize("endpoint", [CHAT, RESPONSES, MESSAGES_API])
def test_a_whole_answer_has_the_tokens_of_the_stream(client, endpoint):
    whole = client.post(
        endpoint, json=body(endpoint, str(HF_CHECKPOINT), "What is shown?", max_tokens=TOKENS)
    ).json()
    assert "".join(texts(client, endpoint)).strip() in json.dumps(whole, ensure_ascii=False)


def test_answers_have_mlx_vlms_header(client):
    streamed = client.post(
        CHAT, json=body(CHAT, str(HF_CHECKPOINT), "What?", max_tokens=2, stream=True)
    )
    for answer in (streamed, client.get("/health"), client.get("/nowhere")):
        assert answer.headers.get_list("server")[0].startswith("mlx_vlm/")


def test_only_a_body_with_nulls_is_written_again(client):
    request = {"model": str(HF_CHECKPOINT), "prompt": "é", "max_tokens": 1}
    received = json.dumps(request, indent=3).encode()
    assert asyncio.run(gate._prepare("/completions", received))[1] is received
    nulls = json.dumps({**request, "stop": None}).encode()
    assert json.loads(asyncio.run(gate._prepare("/completions", nulls))[1]) == request
