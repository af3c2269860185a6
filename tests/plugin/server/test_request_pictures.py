"""Pictures of requests on every endpoint: read once, used or refused, without delaying others."""

import base64
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from bodies import CHAT, ENDPOINTS, MESSAGES_API, RESPONSES, answer_text, body, part, picture_data
from damaged_pictures import damaged_pictures
from picture_server import picture_server
from soak_requests import stream_text
from support import GOLDENS, MESSAGES

QUESTION = MESSAGES[0]
GOLDEN = GOLDENS["generate"]["hf"]["photo"][0]["text"]
MAX_MESSAGE = 500


@pytest.fixture(scope="module")
def web():
    with picture_server() as server:
        yield server


def url_part(endpoint: str, url: object) -> dict:
    """The content part for a picture at ``url``."""
    if endpoint == MESSAGES_API:
        return {"type": "image", "source": {"type": "url", "url": url}}
    if endpoint == RESPONSES:
        return {"type": "input_image", "image_url": url}
    return {"type": "image_url", "image_url": {"url": url}}


def asking(server, endpoint: str, picture: dict, **parameters) -> dict:
    """A greedy question with the content part ``picture``."""
    request = body(endpoint, server.model, QUESTION, **parameters)
    request["input" if endpoint == RESPONSES else "messages"][0]["content"].insert(0, picture)
    return request


def stream(server, endpoint: str, request: dict) -> str:
    """The text of a streamed answer, which must succeed."""
    data = json.dumps({**request, "stream": True}).encode()
    sent = urllib.request.Request(server.url + endpoint, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(sent, timeout=60) as response:
        return stream_text(endpoint, response)


def refusal(server, endpoint: str, request: dict) -> str:
    """The message of a 400, plain and streamed alike."""
    status, answer = server.post(endpoint, request)
    assert status == 400, answer
    assert server.post(endpoint, {**request, "stream": True}) == (status, answer)
    message = answer["error"]["message"]
    assert "\n" not in message
    assert len(message) <= MAX_MESSAGE
    assert len(json.dumps(answer)) <= 3 * MAX_MESSAGE
    return message


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_picture_is_fetched_once(server, web, endpoint):
    for kind in ("plain", "streamed"):
        path = f"/once/photo.png?{endpoint}{kind}"
        request = asking(server, endpoint, url_part(endpoint, web.url + path))
        if kind == "streamed":
            assert stream(server, endpoint, request) == GOLDEN
        else:
            status, answer = server.post(endpoint, request)
            assert (status, answer_text(endpoint, answer)) == (200, GOLDEN)
        assert web.counts[path] == 1


@pytest.mark.parametrize(
    "endpoint", ["/v1/responses/input_tokens", "/v1/messages/count_tokens"], ids=str
)
def test_counting_tokens_fetches_nothing(server, web, endpoint):
    api = RESPONSES if "responses" in endpoint else MESSAGES_API
    path = f"/once/photo.png?{endpoint}"
    request = asking(server, api, url_part(api, web.url + path))
    status, answer = server.post(endpoint, request)
    expected = len(GOLDENS["prompts"][0]["input_ids"]) + GOLDENS["num_patches"]
    assert (status, answer["input_tokens"]) == (200, expected)
    assert not web.counts[path]


def test_a_response_goes_on_about_a_picture_that_is_no_longer_there(server, web):
    path = "/once/photo.png?chain"
    first = asking(server, RESPONSES, url_part(RESPONSES, web.url + path))
    response = server.post(RESPONSES, first)[1]["id"]
    again = body(RESPONSES, server.model, "Where?", previous_response_id=response)
    status, answer = server.post(RESPONSES, again)
    assert status == 200, answer
    assert answer["usage"]["input_tokens"] > GOLDENS["num_patches"]
    assert web.counts[path] == 1


@pytest.mark.parametrize("name", damaged_pictures())
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_damaged_picture_is_the_clients_error(server, endpoint, name):
    data = base64.b64encode(damaged_pictures()[name]).decode()
    message = refusal(server, endpoint, asking(server, endpoint, part(endpoint, data)))
    assert ("data URI" in message) or ("empty" in message) or ("source must be" in message)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_base64_that_has_lost_a_character_or_its_padding_is_refused(server, endpoint):
    for data in (picture_data("photo")[1:], picture_data("photo")[:-1]):
        request = asking(server, endpoint, part(endpoint, data))
        assert "no multiple of 4" in refusal(server, endpoint, request)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_large_bad_picture_makes_no_large_error(server, endpoint):
    request = asking(server, endpoint, part(endpoint, "A" * 600_000))
    assert "Failed to load image" in refusal(server, endpoint, request)


@pytest.mark.parametrize("path", ["/half/photo.png", "/plain/no.png", "/to/file:///etc/passwd"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_address_that_gives_no_picture_is_refused(server, web, endpoint, path):
    request = asking(server, endpoint, url_part(endpoint, web.url + path))
    assert "Failed to load image from http" in refusal(server, endpoint, request)


@pytest.mark.parametrize(
    "uri",
    ["data:;base64,{}", "data:application/octet-stream;base64,{}", "DATA:image/png;base64,{}"],
)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_form_of_a_data_uri_is_read(server, endpoint, uri):
    picture = url_part(endpoint, uri.format(picture_data("photo")))
    status, answer = server.post(endpoint, asking(server, endpoint, picture))
    assert (status, answer_text(endpoint, answer)) == (200, GOLDEN)


@pytest.mark.parametrize("source", [None, 7, [], {}, "", {"url": None}, {"url": 7}], ids=repr)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_source_that_names_nothing_is_refused(server, endpoint, source):
    name = "source" if endpoint == MESSAGES_API else "image_url"
    kind = {CHAT: "image_url", RESPONSES: "input_image", MESSAGES_API: "image"}[endpoint]
    message = refusal(server, endpoint, asking(server, endpoint, {"type": kind, name: source}))
    assert f"content.0: {name} must" in message


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("role", ["system", "assistant"])
def test_a_picture_in_another_message_is_used(server, endpoint, role):
    question = body(endpoint, server.model, QUESTION)
    picture = part(endpoint, picture_data("photo"))
    kind = "input_text" if endpoint == RESPONSES else "text"
    messages = question["input" if endpoint == RESPONSES else "messages"]
    if role == "system":
        first = {"role": role, "content": [picture]}
        if endpoint == MESSAGES_API:
            question["system"] = [picture]
        else:
            messages.insert(0, first)
        status, answer = server.post(endpoint, question)
        assert (status, answer_text(endpoint, answer)) == (200, GOLDEN)
        return
    messages.append({"role": role, "content": [{"type": kind, "text": "A dog."}]})
    messages.append({"role": "user", "content": MESSAGES[2]})
    with_user = json.loads(json.dumps(question))
    messages[1]["content"].insert(0, picture)
    last = with_user["input" if endpoint == RESPONSES else "messages"][2]
    last["content"] = [picture, {"type": kind, "text": MESSAGES[2]}]
    (status, moved), (_, usual) = server.post(endpoint, question), server.post(endpoint, with_user)
    assert status == 200, moved
    assert answer_text(endpoint, moved) == answer_text(endpoint, usual)
    assert moved["usage"] == usual["usage"]


@pytest.mark.parametrize("endpoint", [CHAT, RESPONSES])
def test_a_picture_without_a_user_is_refused(server, endpoint):
    request = body(endpoint, server.model, QUESTION, picture_data("photo"))
    request["input" if endpoint == RESPONSES else "messages"][0]["role"] = "system"
    assert "message of the user" in refusal(server, endpoint, request)


@pytest.mark.parametrize(
    ("resize_shape", "part"),
    [([10**9], "makes a picture of"), ([1], "makes a picture of 1 x 0"), ([10**30], "64 bits")],
)
def test_a_size_that_no_picture_can_have_is_refused(server, resize_shape, part):
    request = body(CHAT, server.model, QUESTION, picture_data("photo"), resize_shape=resize_shape)
    assert part in refusal(server, CHAT, request)


def test_slow_pictures_delay_no_other_request(server, web):
    endpoints = ENDPOINTS * 4
    with ThreadPoolExecutor(len(endpoints)) as pool:
        waiting = []
        for number, endpoint in enumerate(endpoints):
            picture = url_part(endpoint, f"{web.url}/held/photo.png?{number}")
            request = asking(server, endpoint, picture)
            waiting.append(pool.submit(server.post, endpoint, request))
        try:
            while sum(path.startswith("/held/") for path in web.counts) < len(endpoints):
                time.sleep(0.01)
            for endpoint in ENDPOINTS:
                good = body(endpoint, server.model, QUESTION, picture_data("photo"))
                assert answer_text(endpoint, server.post(endpoint, good)[1]) == GOLDEN
            assert not any(future.done() for future in waiting)
        finally:
            web.released.set()
        for future, endpoint in zip(waiting, endpoints):
            status, answer = future.result()
            assert (status, answer_text(endpoint, answer)) == (200, GOLDEN)
