"""Chat completions and responses, through OpenAI's Python client."""

import time

import pytest
from bodies import get
from server_process import data_uri, user_message
from support import GOLDENS, IMAGE_NAMES, MESSAGES, PROMPTS, image_path

GOLDEN = GOLDENS["generate"]["hf"]
TOKENS = GOLDENS["new_tokens"]
PATCHES = GOLDENS["num_patches"]
CASES = [(name, index) for name in IMAGE_NAMES for index in range(len(MESSAGES))]
# An answer of 24 tokens, and an earlier end token.
LONG, SHORT = ("photo", 0), ("rgba", 1)


def picture(source: str) -> dict:
    return {"type": "image_url", "image_url": {"url": source}}


@pytest.fixture
def chat(openai_client, server):
    """Greedy chat completion, streamed or not."""

    def ask(*messages: dict, **parameters):
        parameters = {"temperature": 0, "max_tokens": TOKENS, **parameters}
        return openai_client.chat.completions.create(
            model=server.model, messages=messages, **parameters
        )

    return ask


def text_of(stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_question_about_a_picture_gets_the_reference_answer(chat, name, index):
    answer = chat(user_message(MESSAGES[index], image_path(name)))
    assert answer.choices[0].message.content.strip() == GOLDEN[name][index]["text"]


@pytest.mark.parametrize(("name", "index"), [LONG, SHORT])
def test_a_stream_gives_the_same_answer_and_the_usage(chat, name, index):
    message = user_message(MESSAGES[index], image_path(name))
    chunks = list(chat(message, stream=True, stream_options={"include_usage": True}))
    assert text_of(chunks).strip() == GOLDEN[name][index]["text"]
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 1
    assert chunks[-1].usage == chat(message).usage
    (reason,) = {c.choices[0].finish_reason for c in chunks if c.choices} - {None}
    assert reason == ("length" if (name, index) == LONG else "stop")


@pytest.mark.parametrize(("name", "index"), [LONG, SHORT])
def test_usage_counts_the_visual_tokens_and_every_new_token(chat, name, index):
    usage = chat(user_message(MESSAGES[index], image_path(name))).usage
    assert usage.prompt_tokens == len(PROMPTS[index]["input_ids"]) + PATCHES
    assert usage.completion_tokens == len(GOLDEN[name][index]["tokens"])
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_picture_can_be_an_address(chat, pictures_url):
    message = user_message(MESSAGES[0])
    message["content"].insert(0, picture(f"{pictures_url}/tall.png"))
    assert chat(message).choices[0].message.content.strip() == GOLDEN["tall"][0]["text"]
    assert text_of(chat(message, stream=True)).strip() == GOLDEN["tall"][0]["text"]


def test_a_request_needs_no_picture(chat, ask_alone):
    answer = chat({"role": "user", "content": MESSAGES[0]})
    assert answer.choices[0].message.content.strip() == ask_alone(MESSAGES[0])
    assert answer.usage.prompt_tokens == len(PROMPTS[0]["input_ids"])


def test_every_turn_about_a_picture_counts(chat, ask_alone):
    turns = [MESSAGES[0], GOLDEN["photo"][0]["text"], MESSAGES[2]]
    roles = ("user", "assistant", "user")
    plain = [{"role": role, "content": text} for role, text in zip(roles, turns)]
    conversation = [user_message(turns[0], image_path("photo")), *plain[1:]]
    answer = chat(*conversation).choices[0].message.content.strip()
    assert answer == ask_alone(plain, "photo")
    assert answer != GOLDEN["photo"][2]["text"]
    other = [user_message(turns[0], image_path("tall")), *plain[1:]]
    assert answer != chat(*other).choices[0].message.content.strip()


def test_a_system_message_counts(chat, ask_alone):
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": MESSAGES[0]},
    ]
    with_picture = [conversation[0], user_message(MESSAGES[0], image_path("photo"))]
    answer = chat(*with_picture).choices[0].message.content.strip()
    assert answer == ask_alone(conversation, "photo") != GOLDEN["photo"][0]["text"]


def test_a_seed_decides_what_is_sampled(chat):
    message = user_message(MESSAGES[0], image_path("photo"))
    texts = [
        chat(message, temperature=1, seed=seed).choices[0].message.content for seed in (1, 2, 1)
    ]
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize("stop", [" pict", ["never", "u p", "tu"], "j"])
def test_an_answer_ends_before_a_stop_string(chat, stop):
    message = user_message(MESSAGES[0], image_path("photo"))
    golden = GOLDEN["photo"][0]
    stops = [stop] if isinstance(stop, str) else stop
    expected = golden["text"][: min(golden["text"].index(s) for s in stops if s in golden["text"])]
    answer = chat(message, stop=stop)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < len(golden["tokens"])
    assert text_of(chat(message, stop=stop, stream=True)) == expected


def test_a_stop_string_that_does_not_come_changes_nothing(chat):
    message = user_message(MESSAGES[0], image_path("photo"))
    golden = GOLDEN["photo"][0]["text"]
    # The answer ends with what this string begins with.
    assert chat(message, stop=golden[-2:] + "!").choices[0].message.content.strip() == golden
    assert text_of(chat(message, stop=golden[-2:] + "!", stream=True)).strip() == golden


def test_max_completion_tokens_is_the_newer_name_of_max_tokens(openai_client, server):
    answer = openai_client.chat.completions.create(
        model=server.model,
        messages=[user_message(MESSAGES[0], image_path("photo"))],
        temperature=0,
        max_completion_tokens=5,
    )
    assert answer.usage.completion_tokens == 5


def test_a_client_that_hangs_up_ends_its_request(chat, server_log):
    before = server_log.read_text().count("Generation cancelled")
    message = user_message(MESSAGES[0], image_path("tall"))
    # Without the end token the answer would be long.
    endless = {"max_tokens": 10000, "logit_bias": {"2": -100}}
    stream = chat(message, stream=True, **endless)
    next(iter(stream))
    stream.close()
    for _ in range(200):
        if server_log.read_text().count("Generation cancelled") > before:
            return
        time.sleep(0.1)
    raise AssertionError("The request was not cancelled")


def question(message: str, name: str) -> list[dict]:
    """Input of the responses API."""
    parts = [
        {"type": "input_image", "image_url": data_uri(image_path(name))},
        {"type": "input_text", "text": message},
    ]
    return [{"role": "user", "content": parts}]


@pytest.fixture
def respond(openai_client, server):
    """Greedy answer of the responses API, streamed or not."""

    def ask(input_, **parameters):
        parameters = {"temperature": 0, "max_output_tokens": TOKENS, **parameters}
        return openai_client.responses.create(model=server.model, input=input_, **parameters)

    return ask


@pytest.mark.parametrize(("name", "index"), [LONG, SHORT])
def test_the_responses_api_gives_the_same_answer(respond, name, index):
    answer = respond(question(MESSAGES[index], name))
    assert answer.output_text.strip() == GOLDEN[name][index]["text"]
    assert answer.usage.input_tokens == len(PROMPTS[index]["input_ids"]) + PATCHES
    assert answer.usage.output_tokens == len(GOLDEN[name][index]["tokens"])
    events = list(respond(question(MESSAGES[index], name), stream=True))
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas).strip() == GOLDEN[name][index]["text"]
    assert events[-1].response.usage.input_tokens == answer.usage.input_tokens


def test_a_response_can_follow_another_one_about_the_same_picture(respond, ask_alone):
    first = respond(question(MESSAGES[0], "photo"))
    second = respond(MESSAGES[2], previous_response_id=first.id)
    turns = [
        {"role": "user", "content": MESSAGES[0]},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": MESSAGES[2]},
    ]
    assert second.output_text.strip() == ask_alone(turns, "photo")


def test_models_and_health_name_the_model(openai_client, server):
    assert server.model in [model.id for model in openai_client.models.list()]
    health = get(server, "/health")
    assert (health["status"], health["loaded_model"]) == ("healthy", server.model)
