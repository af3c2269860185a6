"""Two servers and HAProxy with the documentation's configuration."""

import json
import re
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from replicas import CONFIGURATION, Replicas, is_installed
from server_process import user_message
from support import HF_CHECKPOINT

PICTURES = 6
pytestmark = pytest.mark.skipif(not is_installed(), reason="needs HAProxy")


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """The balancer's address and the two servers, by their names in the configuration."""
    with Replicas(HF_CHECKPOINT, tmp_path_factory.mktemp("replicas")) as pair:
        yield pair.url, pair.servers


def _ask(address: str, message: dict, **headers: str) -> tuple[str, str]:
    """Name of the replica that answered, and the answer."""
    body = {"model": str(HF_CHECKPOINT), "messages": [message], "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **headers},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer = json.loads(response.read())["choices"][0]["message"]["content"]
        return response.headers["X-Replica"], answer


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{index}.png" for index in range(PICTURES)]
    for index, path in enumerate(paths):
        Image.new("RGB", (32, 32), (40 * index, 90, 200 - 30 * index)).save(path)
    return [str(path) for path in paths]


def _messages(picture: str) -> list[dict]:
    """Two questions, the picture before and after the text."""
    first, second = user_message("What is this?", picture), user_message("And that?", picture)
    second["content"].reverse()
    return [first, second]


@pytest.mark.slow
def test_questions_about_one_picture_reach_the_same_replica(replicas, pictures):
    address, servers = replicas
    asked = [(path, message) for path in pictures for message in _messages(path)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda each: _ask(address, each[1]), asked * 2))
    met: dict[str, set[str]] = {}
    for (path, message), (replica, answer) in zip(asked * 2, answers):
        met.setdefault(path, set()).add(replica)
        assert (
            answer
            == servers[replica].chat(message, max_tokens=8)["choices"][0]["message"]["content"]
        )
    assert all(len(names) == 1 for names in met.values())
    assert set().union(*met.values()) == {"gpu0", "gpu1"}


def test_a_picture_may_be_named_in_a_header(replicas, pictures):
    address, _ = replicas
    message = user_message("What is this?", pictures[0])
    names = [f"camera {index}" for index in range(8)]
    met = Counter(_ask(address, message, **{"X-Picture": name})[0] for name in names)
    again = Counter(_ask(address, message, **{"X-Picture": name})[0] for name in names)
    assert met == again
    assert set(met) == {"gpu0", "gpu1"}


def test_the_configuration_names_the_ports_that_are_replaced_here():
    assert set(re.findall(r":(80\d\d)", CONFIGURATION.read_text(encoding="utf-8"))) == {
        "8080",
        "8081",
        "8082",
    }
