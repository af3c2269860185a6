"""Invalid input: a 4xx with one sentence, and the server keeps working."""

from concurrent.futures import ThreadPoolExecutor

import anthropic
import openai
import pytest
from bodies import CHAT, ENDPOINTS, MESSAGES_API, RESPONSES, answer_text, body, get, picture_data
from support import GOLDENS, MESSAGES

NO_PICTURE = "aGVsbG9v"  # "helloo"
QUESTION = MESSAGES[0]
GOLDEN = GOLDENS["generate"]["hf"]


def message_of(answer: dict) -> str:
    """The error in the place where OpenAI's and Anthropic's clients both read it."""
    return answer["error"]["message"]


def assert_refused(server, endpoint: str, request, *parts: str, status: int = 400) -> None:
    """One sentence, with ``parts`` in it."""
    got, answer = server.post(endpoint, request)
    assert got == status, answer
    message = message_of(answer)
    assert "\n" not in message
    assert len(message) < 300
    for text in parts:
        assert text in message


@pytest.fixture(autouse=True, scope="module")
def goes_on(server):
    """The server answers as before."""
    yield
    for endpoint in ENDPOINTS:
        assert_goes_on(server, endpoint)


def assert_goes_on(server, endpoint: str = CHAT) -> None:
    good = body(endpoint, server.model, QUESTION, picture_data("photo"))
    status, answer = server.post(endpoint, good)
    assert (status, answer_text(endpoint, answer)) == (200, GOLDEN["photo"][0]["text"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_data_that_is_no_picture_is_refused(server, endpoint, stream):
    request = body(endpoint, server.model, QUESTION, NO_PICTURE * 500, stream=stream)
    assert_refused(server, endpoint, request, "Failed to load image from a data URI", "identify")
    assert_goes_on(server, endpoint)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_two_pictures_are_refused(server, endpoint, stream):
    pictures = picture_data("photo"), picture_data("tall")
    request = body(endpoint, server.model, QUESTION, *pictures, stream=stream)
    assert_refused(server, endpoint, request, "only use 1 image")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.png", "/no/such.png"])
def test_a_missing_picture_is_refused(server, url):
    request = body(CHAT, server.model, QUESTION)
    request["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": url}})
    assert_refused(server, CHAT, request, "Failed to load image", url)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_unknown_model_is_a_404(server, endpoint):
    request = body(endpoint, "no/such-model", QUESTION)
    assert_refused(server, endpoint, request, "no/such-model", server.model, status=404)
    assert_goes_on(server, endpoint)


def test_a_request_for_an_unknown_model_leaves_running_ones_alone(server):
    long = body(CHAT, server.model, QUESTION, picture_data("photo"), max_tokens=200)
    expected = server.post(CHAT, long)[1]["choices"]
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(server.post, CHAT, long) for _ in range(3)]
        assert server.post(CHAT, body(CHAT, "/no/such/model", QUESTION))[0] == 404
    assert [future.result()[1]["choices"] for future in running] == [expected] * 3


def test_an_unknown_adapter_is_a_404(server):
    request = body(CHAT, server.model, QUESTION, adapter_path="/no/such/adapter")
    assert_refused(server, CHAT, request, "/no/such/adapter", status=404)


@pytest.mark.parametrize("data", [b"hello", b"", b"[1]", b"\xff\xfe", b'{"model": '])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_body_that_is_no_json_object_is_refused(server, endpoint, data):
    status = server.post(endpoint, data)[0]
    assert 400 <= status < 500
    assert_refused(server, endpoint, data, status=status)


@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        ({"n": 2}, "n=2"),
        ({"best_of": 3}, "best_of=3"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"stop": 5}, "stop=5"),
        ({"stop": [""]}, "stop"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_completion_tokens": -1}, "max_completion_tokens=-1"),
        ({"repetition_penalty": -1}, "repetition_penalty"),
        ({"resize_shape": [0]}, "resize_shape"),
        ({"top_k": 576}, "top_k=576"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": -1}, "temperature=-1"),
        ({"min_p": 5}, "min_p=5"),
        ({"presence_penalty": float("inf")}, "presence_penalty"),
        # Each of these would write outside the logits or end the server's batch.
        ({"logit_bias": {"576": 5}}, "logit_bias"),
        ({"logit_bias": {"-1": 5}}, "logit_bias"),
        ({"logit_bias": {"a": 5}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"5": "a"}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "no role 'tool'"),
    ],
    ids=str,
)
def test_a_parameter_that_cannot_be_used_is_refused(server, parameters, part):
    request = body(CHAT, server.model, QUESTION, picture_data("photo"))
    assert_refused(server, CHAT, {**request, **parameters}, part)


@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        ({"n": 2}, "n=2"),
        ({"tools": [{"type": "function", "name": "f", "input_schema": {}}]}, "tools"),
        ({"background": True}, "background=True"),
        ({"top_k": 576}, "top_k=576"),
        # Each of these once gave an error without a message, or a meaningless answer.
        ({"temperature": -1}, "temperature=-1"),
        ({"top_p": 2}, "top_p=2"),
        ({"max_completion_tokens": "many"}, "max_completion_tokens='many'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_parameter_that_cannot_be_used_is_refused_by_every_endpoint(
    server, endpoint, parameters, part
):
    request = body(endpoint, server.model, QUESTION, picture_data("photo"))
    assert_refused(server, endpoint, {**request, **parameters}, part)


def test_parameters_at_the_ends_of_their_ranges_are_accepted(server):
    request = body(CHAT, server.model, QUESTION, max_tokens=1, top_k=575, temperature=2, n=1)
    request.update(logit_bias={"575": -5, "0": 1.5}, stop=[], tools=[], repetition_penalty=0.5)
    request.update(top_p=1, min_p=1, modalities=["text"])
    assert server.post(CHAT, request)[0] == 200


@pytest.mark.parametrize(
    ("endpoint", "status"), [(CHAT, 422), (RESPONSES, 422), (MESSAGES_API, 400)]
)
def test_a_parameter_of_a_wrong_type_is_refused(server, endpoint, status):
    request = body(endpoint, server.model, QUESTION, top_p="much")
    assert_refused(server, endpoint, request, "top_p: Input should be", status=status)


def test_tools_that_must_not_be_called_are_no_obstacle(server):
    tools = [{"type": "function", "function": {"name": "f"}}]
    picture = picture_data("photo")
    request = body(CHAT, server.model, QUESTION, picture, tools=tools, tool_choice="none")
    assert server.post(CHAT, request)[0] == 200


@pytest.mark.parametrize(
    "content",
    [
        {"type": "input_audio", "input_audio": {"data": "aGVsbG8=", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "/no/such.mp4"}},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_audio_and_video_are_refused(server, content, stream):
    request = body(CHAT, server.model, QUESTION, stream=stream)
    request["messages"][0]["content"].append(content)
    assert_refused(server, CHAT, request)


def test_a_bad_request_leaves_those_under_way_alone(server):
    good = body(CHAT, server.model, QUESTION, picture_data("tall"), max_tokens=200)
    expected = server.post(CHAT, good)[1]["choices"]
    bad = body(CHAT, server.model, QUESTION, NO_PICTURE), {**good, "top_k": 1000}
    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(server.post, CHAT, good) for _ in range(3)]
        refused = [pool.submit(server.post, CHAT, request) for request in bad * 3]
    assert [future.result()[0] for future in refused] == [400] * 6
    assert [future.result()[1]["choices"] for future in running] == [expected] * 3


def test_the_official_clients_show_the_sentence(server, openai_client, anthropic_client):
    bad = body(CHAT, server.model, QUESTION, NO_PICTURE)
    with pytest.raises(openai.BadRequestError, match="Failed to load image"):
        openai_client.chat.completions.create(**bad)
    bad = body(RESPONSES, "nope", QUESTION)
    with pytest.raises(openai.NotFoundError, match="No model 'nope'"):
        openai_client.responses.create(**bad)
    bad = body(MESSAGES_API, server.model, QUESTION, NO_PICTURE)
    del bad["temperature"]
    with pytest.raises(anthropic.BadRequestError, match="Failed to load image"):
        anthropic_client.messages.create(**bad)


def test_no_request_is_left_counted_as_under_way(server):
    with_error = body(RESPONSES, server.model, QUESTION, NO_PICTURE, stream=True)
    assert_refused(server, RESPONSES, with_error)
    assert get(server, "/metrics")["summary"]["in_flight"] == 0
