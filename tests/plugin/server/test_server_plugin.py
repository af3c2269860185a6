"""The server's additions, one by one; they do not affect other models."""

import asyncio
import json
import sys
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import mlx.core as mx
import mlx_vlm.server
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlx_vlm.server import app
from mlx_vlm.server import request_normalization as normalization
from mlx_vlm.server.generation import GenerationArguments, _PositionedTargetSampler
from mlx_vlm.server.runtime import ModelCacheRegistry, runtime
from mlx_vlm.utils import load_image
from starlette.exceptions import HTTPException

pytestmark = pytest.mark.usefixtures("model")  # loading it installs the additions


@pytest.fixture(params=[False, True], ids=["another model", "Moxin"])
def is_moxin(request, monkeypatch, processor):
    """Whether the loaded model is Moxin."""
    registry = ModelCacheRegistry()
    loaded = processor if request.param else object()
    registry.set("text_generation", {"processor": loaded, "model_path": "loaded"})
    monkeypatch.setattr(runtime, "model_cache", registry)
    return request.param


def raised_by(function, *arguments) -> HTTPException:
    """The HTTP error of mlx-vlm's endpoints for the exception of ``function``."""
    try:
        try:
            function(*arguments)
        except Exception as error:
            raise HTTPException(500, f"An unexpected error occurred: {error}")  # noqa: B904
    except HTTPException as error:
        return error
    raise AssertionError("nothing was raised")


def answer_to(error: HTTPException) -> tuple[int, dict]:
    response = asyncio.run(app.exception_handlers[HTTPException](None, error))
    return response.status_code, json.loads(response.body)


def test_a_bad_picture_is_the_clients_error_for_moxin_alone(is_moxin):
    status, answer = answer_to(raised_by(load_image, "/no/such.png"))
    assert (status, "error" in answer) == ((400, True) if is_moxin else (500, False))


def test_an_error_of_the_server_stays_one(is_moxin):
    def full_disk():
        raise OSError("No space left on device")

    for function in (full_disk, lambda: [][0], lambda: int("x")):
        assert answer_to(raised_by(function))[0] == 500


def test_parameters_are_checked_for_moxin_alone(is_moxin, processor):
    request = mlx_vlm.server.ChatRequest(model="m", messages=[{"role": "user"}], n=2)
    if is_moxin:
        with pytest.raises(ValueError, match="n=2"):
            normalization._build_gen_args(request, processor)
    else:
        assert not hasattr(normalization._build_gen_args(request, None), "stop")


def test_an_unknown_model_is_looked_for_first_for_moxin_alone(is_moxin, monkeypatch):
    unloaded = []
    app_module = sys.modules["mlx_vlm.server.app"]
    monkeypatch.setattr(app_module, "_unload_model_cache_group", unloaded.append)
    with pytest.raises(HTTPException) as caught:
        mlx_vlm.server.get_cached_model("/no/such/model")
    assert (caught.value.status_code, unloaded) == (
        (404, []) if is_moxin else (400, ["text_generation"])
    )


@dataclass
class Token:
    text: str
    finish_reason: str | None = None


class Tokens:
    """An answer's tokens, as from the server's generator."""

    def __init__(self, texts: list[str]):
        ends = [None] * (len(texts) - 1) + ["length"]
        self._tokens = iter([Token(text, end) for text, end in zip(texts, ends)])
        self.closed = False

    def __next__(self) -> Token:
        return next(self._tokens)

    def close(self) -> None:
        self.closed = True


words = st.text("ab ", min_size=1, max_size=4)


@given(
    texts=st.lists(st.text("ab ", max_size=3), min_size=1, max_size=12),
    stops=st.lists(words, min_size=1, max_size=3),
    include=st.booleans(),
)
@example([" b", " "], ["b", " b "], False)
@settings(max_examples=300)
def test_text_is_given_out_up_to_the_first_stop_string_however_it_is_split(texts, stops, include):
    from mlx_vlm_moxin.plugin.server.generator import StoppingTokens

    tokens = Tokens(texts)
    given_out = list(StoppingTokens(tokens, stops, include))
    text = "".join(texts)
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    joined = "".join(token.text for token in given_out)
    if not found:
        assert joined == text
        assert given_out[-1].finish_reason == "length"
        return
    assert tokens.closed
    assert given_out[-1].finish_reason == "stop"
    assert sum(token.finish_reason is not None for token in given_out) == 1
    end, start = min(found)
    assert joined == text[: end if include else start]


def test_each_row_is_sampled_as_if_it_were_alone():
    from mlx_vlm_moxin.plugin.server.generator import RowSampler

    logprobs = mx.random.normal((6, 50), key=mx.random.key(0))
    cases = [
        {"seed": 1},
        {"temperature": 0},
        {"seed": 2},
        {"seed": 1, "top_k": 3},
        {"seed": 3, "top_p": 0.7},
        {"seed": None},
    ]
    requests = [GenerationArguments(**{"temperature": 1.0, **one}) for one in cases]
    rows = RowSampler(None)
    uids = [40 + row for row in range(6)]
    running = {uid: rows.row(args) for uid, args in zip(uids, requests)}
    for position in range(5):
        batch = SimpleNamespace(uids=uids)
        name = "_generation_batch" if position else "_prompt_batch"
        rows.begin(SimpleNamespace(**{name: batch}), running)
        expected = [
            int(mx.argmax(logprobs[row]))
            if args.temperature == 0
            else _PositionedTargetSampler(
                temperature=1.0, top_p=args.top_p, top_k=args.top_k, seed=args.seed
            )
            .sample_target(logprobs[row : row + 1], row_ids=[0], positions=[position])
            .item()
            for row, args in enumerate(requests)
        ]
        drawn = rows.sample_target(logprobs, row_ids=[0] * 6, positions=[position] * 6)
        assert drawn.tolist() == expected


def test_rows_that_are_not_known_are_sampled_as_mlx_vlm_does():
    from mlx_vlm_moxin.plugin.server.generator import RowSampler

    logprobs = mx.random.normal((3, 50), key=mx.random.key(0))
    greedy = mx.argmax(logprobs, axis=-1).tolist()
    unknown = {"row_ids": [0] * 3, "positions": [1] * 3}
    for call in (RowSampler.__call__, partial(RowSampler.sample_target, **unknown)):
        assert call(RowSampler(None), logprobs).tolist() == greedy
        sevens = RowSampler(lambda logprobs: mx.array([7, 7, 7]))
        assert call(sevens, logprobs).tolist() == [7, 7, 7]
