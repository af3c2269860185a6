"""The Messages API, used through Anthropic's Python client."""

import base64
from pathlib import Path

import pytest
from support import GOLDENS, MESSAGES, PROMPTS, image_path

GOLDEN = GOLDENS["generate"]["hf"]
TOKENS = GOLDENS["new_tokens"]
LENGTH = len(PROMPTS[0]["input_ids"]) + GOLDENS["num_patches"]


def question(message: str, name: str) -> dict:
    data = base64.b64encode(Path(image_path(name)).read_bytes()).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    parts = [{"type": "image", "source": source}, {"type": "text", "text": message}]
    return {"role": "user", "content": parts}


@pytest.fixture
def request_of(server):
    """Arguments of a greedy request; newer clients have no argument ``temperature``."""

    def arguments(*messages: dict, **parameters) -> dict:
        fixed = {"model": server.model, "max_tokens": TOKENS, "extra_body": {"temperature": 0}}
        return {**fixed, "messages": list(messages), **parameters}

    return arguments


@pytest.mark.parametrize(
    ("name", "index", "reason"), [("photo", 0, "max_tokens"), ("rgba", 1, "end_turn")]
)
def test_a_question_about_a_picture_gets_the_reference_answer(
    anthropic_client, request_of, name, index, reason
):
    answer = anthropic_client.messages.create(**request_of(question(MESSAGES[index], name)))
    assert answer.content[0].text.strip() == GOLDEN[name][index]["text"]
    assert answer.stop_reason == reason
    assert answer.usage.output_tokens == len(GOLDEN[name][index]["tokens"])


def test_usage_and_count_tokens_count_the_visual_tokens(anthropic_client, request_of, server):
    message = question(MESSAGES[0], "photo")
    assert anthropic_client.messages.create(**request_of(message)).usage.input_tokens == LENGTH
    count = anthropic_client.messages.count_tokens(model=server.model, messages=[message])
    assert count.input_tokens == LENGTH


def test_a_stream_gives_the_same_answer(anthropic_client, request_of):
    with anthropic_client.messages.stream(**request_of(question(MESSAGES[0], "photo"))) as stream:
        text = "".join(stream.text_stream)
        usage = stream.get_final_message().usage
    assert text.strip() == GOLDEN["photo"][0]["text"]
    assert (usage.input_tokens, usage.output_tokens) == (LENGTH, TOKENS)


def test_a_picture_can_be_an_address(anthropic_client, request_of, pictures_url):
    message = question(MESSAGES[0], "tall")
    message["content"][0]["source"] = {"type": "url", "url": f"{pictures_url}/tall.png"}
    answer = anthropic_client.messages.create(**request_of(message))
    assert answer.content[0].text.strip() == GOLDEN["tall"][0]["text"]


def test_every_turn_and_the_system_prompt_count(anthropic_client, request_of, ask_alone):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": MESSAGES[0]},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": MESSAGES[2]},
    ]
    messages = [question(MESSAGES[0], "photo"), *turns[2:]]
    answer = anthropic_client.messages.create(**request_of(*messages, system="Be brief."))
    assert answer.content[0].text.strip() == ask_alone(turns, "photo")


def test_a_request_needs_no_picture(anthropic_client, request_of, ask_alone):
    message = {"role": "user", "content": MESSAGES[0]}
    answer = anthropic_client.messages.create(**request_of(message))
    assert answer.content[0].text.strip() == ask_alone(MESSAGES[0])


def test_an_answer_ends_before_a_stop_sequence(anthropic_client, request_of):
    message = question(MESSAGES[0], "photo")
    answer = anthropic_client.messages.create(**request_of(message, stop_sequences=["x!", "tu"]))
    golden = GOLDEN["photo"][0]["text"]
    assert answer.content[0].text == golden[: golden.index("tu")]
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "tu")
    assert answer.usage.output_tokens < TOKENS


def streamed_to(client, arguments: dict) -> tuple[str, str]:
    with client.messages.stream(**arguments) as stream:
        return "".join(stream.text_stream), stream.get_final_message().stop_sequence


def test_a_stream_ends_at_a_stop_sequence(anthropic_client, request_of):
    arguments = request_of(question(MESSAGES[0], "photo"), stop_sequences=["tu"])
    text, sequence = streamed_to(anthropic_client, arguments)
    golden = GOLDEN["photo"][0]["text"]
    assert (text.removesuffix("tu"), sequence) == (golden[: golden.index("tu")], "tu")


@pytest.mark.xfail(
    strict=True, reason="mlx-vlm finds the stop sequence in the text that it has streamed"
)
def test_a_stream_leaves_the_stop_sequence_out(anthropic_client, request_of):
    arguments = request_of(question(MESSAGES[0], "photo"), stop_sequences=["tu"])
    text, _ = streamed_to(anthropic_client, arguments)
    assert not text.endswith("tu")
