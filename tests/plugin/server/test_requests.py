"""Requests: seeds, nulls, bodies, limits, and answers that come back."""

import http.client
import json
import math

import pytest
from bodies import (
    CHAT,
    ENDPOINTS,
    MAX_MESSAGE,
    MESSAGES_API,
    RESPONSES,
    answer_text,
    body,
    get,
    picture_data,
    refusal,
)
from support import GOLDENS, MESSAGES

from mlx_vlm_moxin.plugin.server.json_body import parse_object, without_nulls

QUESTION = MESSAGES[0]
GOLDEN = GOLDENS["generate"]["hf"]["photo"][0]["text"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_without_a_seed_answers_differ_and_with_one_they_repeat(server, endpoint):
    sampled = body(endpoint, server.model, QUESTION, picture_data("photo"), max_tokens=8)
    sampled["temperature"] = 1.5
    free = [answer_text(endpoint, server.post(endpoint, sampled)[1]) for _ in range(4)]
    assert len(set(free)) > 1
    seeded = {**sampled, "seed": 7}
    assert len({answer_text(endpoint, server.post(endpoint, seeded)[1]) for _ in range(3)}) == 1


@pytest.mark.parametrize(
    "settings",
    [{"min_p": 0.05}, {"top_n_sigma": 1.5}, {"p_less": True}, {"typical_p": 0.9}, {"top_p": 0.9}],
    ids=str,
)
def test_a_seed_repeats_an_answer_with_every_filter(server, settings):
    request = body(CHAT, server.model, QUESTION, picture_data("photo"), max_tokens=8, **settings)
    request["temperature"] = 1.5
    repeated = [answer_text(CHAT, server.post(CHAT, {**request, "seed": 3})[1]) for _ in range(2)]
    assert len(set(repeated)) == 1
    free = {answer_text(CHAT, server.post(CHAT, request)[1]) for _ in range(3)}
    assert len(free) > 1


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_min_p_of_one_leaves_the_likeliest_token(server, endpoint):
    request = body(endpoint, server.model, QUESTION, picture_data("photo"), temperature=2, min_p=1)
    assert answer_text(endpoint, server.post(endpoint, request)[1]) == GOLDEN


NULLS = [
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "max_tokens",
    "max_output_tokens",
    "n",
    "stream",
    "tools",
    "tool_choice",
    "response_format",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "stream_options",
    "user",
    "metadata",
    "system",
    "stop_sequences",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "resize_shape",
    "min_p",
    "adapter_path",
    "thinking",
    "instructions",
    "previous_response_id",
    "store",
    "text",
    "reasoning",
]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_explicit_null_is_the_same_as_nothing(server, endpoint):
    plain = body(endpoint, server.model, QUESTION, picture_data("photo"))
    nulls = {**dict.fromkeys(NULLS), **plain}
    nulls["input" if endpoint == RESPONSES else "messages"][0]["name"] = None
    status, answer = server.post(endpoint, nulls)
    assert (status, answer_text(endpoint, answer)) == (200, GOLDEN)
    if endpoint == CHAT:
        nulls["messages"].append({"role": "assistant", "content": None, "refusal": None})
        assert server.post(endpoint, nulls)[0] == 200


DEEP = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
LONG_NUMBER = b"1" * 5000


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b'{"model": %b, "temperature": NaN}', "temperature=nan"),
        (b'{"model": %b, "min_p": Infinity}', "min_p=inf"),
        (b'{"model": %b, "top_k": 1e999}', "top_k=inf"),
        (b'{"model": %b, "logit_bias": {"5": NaN}}', "logit_bias.5=nan"),
        (b'{"model": %b, "x": ' + DEEP + b"}", "nested"),
        (b'{"model": %b, "x": ' + b"[" * 100 + b"]" * 100 + b"}", "nested more than 64"),
        (b'{"model": %b, "max_tokens": ' + LONG_NUMBER + b"}", "not JSON"),
        (b'{"model": %b, "seed": ' + b"1" * 30 + b"}", "seed cannot be used: it has more than 64"),
        (b'{"model": %b, "user": "\\ud800"}', "user holds half of a surrogate pair"),
        (b'{"model": %b, "\\udfff": 1}', "a name holds half"),
        (b'{"model": "a\\u0000b"}', "model holds a null character"),
        (b'{"model": %b, "adapter_path": "a\\u0000"}', "adapter_path holds a null character"),
        (b'\xff{"model": %b}', "UTF-8"),
        (b"[1]", "not a JSON object"),
        (b"", "not JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_body_that_is_no_usable_json_is_refused(server, endpoint, data, part):
    if b"%b" in data:
        data = data.replace(b"%b", json.dumps(server.model).encode())
    assert part in refusal(server, endpoint, data)


@pytest.mark.parametrize("text", ["a\ud800b", "\udc00"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_half_a_surrogate_pair_in_a_message_is_refused(server, endpoint, text):
    assert "surrogate" in refusal(server, endpoint, body(endpoint, server.model, text))


SCHEMAS = [False, True, [], 5, "x", {"$ref": "#"}, {"$ref": "#/no"}, {"type": "no"}, {"enum": []}]
SCHEMAS += [{"type": "string", "pattern": "("}, {"allOf": [{"type": "string"}, {"type": "null"}]}]


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_a_schema_that_cannot_be_used_is_refused(server, schema):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    request = body(CHAT, server.model, QUESTION, response_format=form)
    assert "schema of response_format" in refusal(server, CHAT, request)
    form = {"type": "json_schema", "name": "a", "schema": schema}
    request = body(RESPONSES, server.model, QUESTION, text={"format": form})
    assert "schema of response_format" in refusal(server, RESPONSES, request)
    request = body(MESSAGES_API, server.model, QUESTION, output_config={"format": form})
    assert "schema of response_format" in refusal(server, MESSAGES_API, request)


@pytest.mark.parametrize("form", [[], 5, "json", True], ids=repr)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_response_format_that_is_no_object_is_refused(server, endpoint, form):
    request = body(endpoint, server.model, QUESTION, response_format=form)
    assert "response_format must be an object" in refusal(server, endpoint, request)


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": "hot"},
        {"top_p": []},
        {"top_k": 1.5},
        {"min_p": "a"},
        {"seed": "a"},
        {"seed": 1.5},
        {"typical_p": -1},
        {"resize_shape": "big"},
        {"resize_shape": [1, 2, 3]},
        {"stream": 5},
        {"tool_parser": "x" * 10_000},
        {"logit_bias": {"1" * 10_000: 1}},
        {"stop": "x" * 0},
        {"stop": [5]},
        {"model": 5},
        {"adapter_path": 5},
        {"messages": "x", "input": 5},
        {"messages": [5], "input": [5]},
        {
            "messages": [{"role": "king", "content": "x"}],
            "input": [{"role": "king", "content": "x"}],
        },
    ],
    ids=lambda value: str(value)[:60],
)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_value_that_cannot_be_used_is_the_clients_error(server, endpoint, parameters):
    request = {**body(endpoint, server.model, QUESTION, picture_data("photo")), **parameters}
    status, answer = server.post(endpoint, request)
    if status == 200:  # ignored, as by this endpoint's own API
        assert answer_text(endpoint, answer) == GOLDEN
        return
    assert 400 <= status < 500, answer
    assert len(answer["error"]["message"]) <= MAX_MESSAGE
    assert len(json.dumps(answer)) <= 4 * MAX_MESSAGE


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_more_text_than_the_context_holds_is_refused_by_its_length(server, endpoint):
    message = refusal(server, endpoint, body(endpoint, server.model, "a " * 5_000_000))
    assert "10000" in message
    assert "characters of text; the context of" in message


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_more_tokens_than_the_context_holds_are_refused(server, endpoint, stream):
    limit = get(server, "/health")["loaded_context_size"]
    request = body(endpoint, server.model, "é" * limit, stream=stream)
    message = refusal(server, endpoint, request)
    if endpoint == CHAT:  # mlx-vlm's limit, which would first have shortened a longer history
        assert message == "Protected conversation exceeds the available context budget."
    else:
        assert f"; the context of {limit} tokens has no room for an answer" in message
    assert refusal(server, endpoint, {**request, "context_management": []}).startswith("The prompt")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_body_that_is_too_large_is_refused_early(server, endpoint):
    message = refusal(server, endpoint, b" " * (51 * 2**20), 413)
    assert message == f"The body of the request is larger than {50 * 2**20} bytes"


ANSWERS = [("A dog.", " A dog. \n"), (" ", " \n"), ("A dog.", "<image>\tA dog.\u2003")]


@pytest.mark.parametrize(("stripped", "answer"), ANSWERS)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_answer_that_comes_back_with_its_space_is_stripped(server, endpoint, stripped, answer):
    seen = []
    for text in (stripped, answer):
        request = body(endpoint, server.model, QUESTION, picture_data("photo"))
        kind = "output_text" if endpoint == RESPONSES else "text"
        request["input" if endpoint == RESPONSES else "messages"] += [
            {"role": "assistant", "content": [{"type": kind, "text": text}]},
            {"role": "user", "content": MESSAGES[1]},
        ]
        status, given = server.post(endpoint, request)
        assert status == 200, given
        seen.append((answer_text(endpoint, given), given["usage"]))
    assert seen[0] == seen[1]


def test_one_model_can_be_requested_by_its_name(server):
    (model,) = [m for m in get(server, "/v1/models")["data"] if m["loaded"]]
    assert get(server, f"/v1/models/{server.model}") == model
    assert get(server, f"/models/{server.model.lstrip('/')}") == model
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/v1/models/no/such-model")
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert (response.status, answer["error"]["message"]) == (
        404,
        "No model 'no/such-model' on this server; GET /v1/models lists them",
    )


def test_finite_numbers_are_left_as_they_are():
    value = {"a": [1, 2.5, None, {"b": None, "c": [None]}], "response_format": {"const": None}}
    value["text"] = {"x": None}
    assert parse_object(json.dumps(value).encode()) == value
    kept = {**value, "a": [1, 2.5, None, {"c": [None]}]}
    assert without_nulls(value) == kept
    assert math.isfinite(kept["a"][1])
