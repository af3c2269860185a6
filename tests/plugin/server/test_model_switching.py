"""Requests for other models: the served model stays until another one is loaded."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bodies import CHAT, ENDPOINTS, answer_text, body, get, picture_data
from fastapi import HTTPException
from mlx_vlm import server as mlx_vlm_server
from mlx_vlm.server.runtime import ModelCacheRegistry, runtime
from server_process import Server
from support import GOLDENS, MESSAGES

from mlx_vlm_moxin.plugin.server import models
from mlx_vlm_moxin.plugin.server.client import Client, serving

TINY = Path(__file__).parents[2] / "moxin_tiny"
QUESTION = MESSAGES[0]
GOLDEN = GOLDENS["generate"]["hf"]["photo"][0]["text"]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("switching") / "log.txt"


@pytest.fixture(scope="module")
def switching(fp32_checkpoint, log):
    with Server(fp32_checkpoint, log) as server:
        yield server


def served(server) -> str:
    return get(server, "/health")["loaded_model"]


def body_of(endpoint: str, model: str, **parameters) -> dict:
    return body(endpoint, model, QUESTION, **parameters)


@pytest.mark.parametrize("damage", ["cut weights", "no weights", "other weights", "no JSON"])
def test_a_broken_model_leaves_the_served_one(switching, log, tmp_path, damage):
    broken = tmp_path / "broken"
    shutil.copytree(TINY / "checkpoint", broken)
    weights = broken / "model.safetensors"
    if damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:100_000])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "other weights":
        shutil.copy(next(Path(switching.model).glob("model*.safetensors")), weights)
    else:
        (broken / "config.json").write_text("{")
    check(switching, log, str(broken))


@pytest.mark.parametrize("damage", ["empty", "no JSON", "no weights"])
def test_a_broken_adapter_leaves_the_served_model(switching, log, tmp_path, damage):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    if damage != "empty":
        text = "{" if damage == "no JSON" else '{"rank": 8, "alpha": 16, "dropout": 0}'
        (adapter / "adapter_config.json").write_text(text)
    check(switching, log, switching.model, adapter_path=str(adapter))


def check(server, log, model: str, **parameters) -> None:
    before, first = served(server), log.stat().st_size
    for endpoint in ENDPOINTS:
        status, answer = server.post(endpoint, body_of(endpoint, model, **parameters))
        assert 400 <= status < 500, answer
        assert len(answer["error"]["message"]) <= 500
    assert served(server) == before
    text = log.read_bytes()[first:].decode()
    assert "Unloading" not in text
    assert "Stopping response generator" not in text
    good = body(CHAT, server.model, QUESTION, picture_data("photo"))
    assert answer_text(CHAT, server.post(CHAT, good)[1]) == GOLDEN


def test_a_request_under_way_is_answered_by_its_own_model(switching):
    long = body(CHAT, switching.model, QUESTION, picture_data("tall"), max_tokens=300)
    long["logit_bias"] = {"2": -100}
    expected = switching.post(CHAT, long)[1]["choices"]
    other = str(TINY / "checkpoint")
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(switching.post, CHAT, long) for _ in range(2)]
        while get(switching, "/metrics")["summary"]["in_flight"] < 2:
            time.sleep(0.01)
        status, answer = switching.post(CHAT, body(CHAT, other, "What colour is the circle?"))
        assert status == 200, answer
        assert served(switching) == other
    assert [future.result()[1]["choices"] for future in running] == [expected] * 2
    good = body(CHAT, switching.model, QUESTION, picture_data("photo"))
    assert answer_text(CHAT, switching.post(CHAT, good)[1]) == GOLDEN
    assert served(switching) == switching.model


class Generator:
    """In place of mlx-vlm's."""

    def __init__(self):
        self.stopped = threading.Event()

    def stop_and_join(self):
        self.stopped.set()


@pytest.fixture
def registry(monkeypatch, processor):
    """A registry with Moxin loaded, in place of the server's."""
    made = ModelCacheRegistry()
    key = ("old", None, "text_generation", runtime.config.fingerprint(kinds={"text_generation"}))
    cache = {"cache_key": key, "model_path": "old", "processor": processor}
    made.set("text_generation", {**cache, "response_generator": Generator()})
    monkeypatch.setattr(runtime, "model_cache", made)
    monkeypatch.setattr(models, "check_model", lambda *_: None)
    return made


def test_the_served_model_answers_while_another_one_is_loaded(registry):
    old = registry.for_kind()["response_generator"]
    loading, go_on = threading.Event(), threading.Event()

    def load(model_path, adapter_path, *, model_kind):
        assert registry.for_kind() == {}
        loading.set()
        assert go_on.wait(10)
        registry.set("text_generation", {"model_path": model_path})
        return "loaded"

    get_cached_model = models.get_cached_model(load)
    with ThreadPoolExecutor(1) as pool, serving(Client(generator=old)):
        future = pool.submit(get_cached_model, "new")
        assert loading.wait(10)
        assert registry.get("model_path") == "old"
        go_on.set()
        assert future.result() == "loaded"
        assert registry.get("model_path") == "new"
        # A request that uses the old model is still running.
        assert not old.stopped.wait(0.3)
    assert old.stopped.wait(10)


def test_a_model_that_cannot_be_loaded_leaves_everything_as_it_was(registry, monkeypatch):
    monkeypatch.setattr(runtime, "apc_manager", "old")
    before = registry.for_kind()

    def load(*_, **__):
        runtime.apc_manager = "new"
        raise HTTPException(400, "broken")

    with pytest.raises(HTTPException):
        models.get_cached_model(load)("new")
    assert registry.for_kind() is before
    assert runtime.apc_manager == "old"
    assert not before["response_generator"].stopped.is_set()


def test_the_served_model_is_asked_for_again_without_loading_it(registry):
    asked = []
    get_cached_model = models.get_cached_model(lambda *names, **kinds: asked.append((names, kinds)))
    get_cached_model("old")
    get_cached_model("old", None, model_kind="text_generation")
    inherited = mlx_vlm_server._INHERIT_ADAPTER
    assert asked == [
        (("old", inherited), {"model_kind": "auto"}),
        (("old", None), {"model_kind": "text_generation"}),
    ]
