"""Log-probabilities: their tokens and bytes, and how many a request may have."""

import pytest
from bodies import CHAT, MESSAGES_API, RESPONSES, body, picture_data, refusal
from server_process import Server
from support import MESSAGES

from mlx_vlm_moxin.plugin.server import logprobs

QUESTION = MESSAGES[0]


def test_tokens_of_log_probabilities_make_up_the_answer(server):
    request = body(CHAT, server.model, QUESTION, picture_data("photo"), logprobs=True)
    choice = server.post(CHAT, request)[1]["choices"][0]
    tokens = choice["logprobs"]["content"]
    # Up to the first character that consists of several byte tokens.
    text = "".join(token["token"] for token in tokens).partition("\ufffd")[0].lstrip()
    assert len(text) > 5
    assert choice["message"]["content"].startswith(text)
    assert any(token["token"].startswith(" ") for token in tokens)


def test_the_bytes_of_tokens_make_up_their_text(processor, monkeypatch):
    monkeypatch.setattr(logprobs, "serves_moxin", lambda: True)
    decode = logprobs.decode_token(None)
    text = "A na\u00efve \u65e5\u672c \U0001f642 dog.\n"
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = [decode(processor.tokenizer, token) for token in ids]
    assert b"".join(bytes(data) for _, data in tokens).decode().removeprefix(" ") == text
    assert decode(processor.tokenizer, processor.tokenizer.eos_token_id)[0] == "</s>"


@pytest.mark.parametrize("stream", [False, True])
def test_more_log_probabilities_than_the_server_computes_are_refused(server, stream):
    request = body(CHAT, server.model, QUESTION, logprobs=True, top_logprobs=3, stream=stream)
    option = "this server returns 0; start it with --top-logprobs-k 3"
    assert refusal(server, CHAT, request) == f"top_logprobs=3 cannot be used: {option}"
    assert "from 0 to 20" in refusal(server, CHAT, {**request, "top_logprobs": 50})
    included = ["message.output_text.logprobs"]
    for endpoint, more in (
        (RESPONSES, {"top_logprobs": 3}),
        (RESPONSES, {"include": included}),
        (MESSAGES_API, {"top_logprobs": 3}),
    ):
        request = body(endpoint, server.model, QUESTION, stream=stream, **more)
        assert "/v1/chat/completions only" in refusal(server, endpoint, request)
    request = {"model": server.model, "prompt": "a", "logprobs": 3, "stream": stream}
    expected = "logprobs=3 cannot be used on /v1/completions"
    assert refusal(server, "/v1/completions", request) == expected


def test_log_probabilities_are_as_many_as_the_server_is_started_with(fp32_checkpoint, tmp_path):
    with Server(fp32_checkpoint, tmp_path / "log.txt", "--top-logprobs-k", "3") as server:
        request = body(CHAT, server.model, QUESTION, logprobs=True, max_tokens=4, top_logprobs=3)
        tokens = server.post(CHAT, request)[1]["choices"][0]["logprobs"]["content"]
        assert all(len(token["top_logprobs"]) == 3 for token in tokens)
        assert tokens[0]["token"] == tokens[0]["top_logprobs"][0]["token"]
        message = refusal(server, CHAT, {**request, "top_logprobs": 4})
        assert "returns 3; start it with --top-logprobs-k 4" in message
