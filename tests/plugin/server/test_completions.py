"""``/v1/completions``: the text after a prompt, through the official client."""

import openai
import pytest
from mlx_vlm import generate

PROMPT = "In: What is shown?\nOut: The"


@pytest.fixture(scope="module")
def expected(model, processor):
    """The text after the prompt; the command strips the space before it."""
    return generate(model, processor, PROMPT, max_tokens=16).text


def test_a_prompt_goes_on_without_the_chat_template(openai_client, server, expected):
    for prompt in (PROMPT, [PROMPT]):
        answer = openai_client.completions.create(
            model=server.model, prompt=prompt, temperature=0, user=None, suffix=None
        )
        assert answer.object == "text_completion"
        assert answer.choices[0].text.strip() == expected
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 16
        assert answer.usage.total_tokens == 16 + answer.usage.prompt_tokens


def test_a_streamed_answer_is_the_same(openai_client, server, expected):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = [
        *openai_client.completions.create(
            model=server.model, prompt=PROMPT, temperature=0, **options
        )
    ]
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text.strip() == expected
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 16


def test_stop_ends_the_text_and_a_seed_repeats_it(openai_client, server, expected):
    ask = openai_client.completions.create
    stop = " Y"
    cut = ask(model=server.model, prompt=PROMPT, temperature=0, stop=stop).choices[0]
    assert cut.text.strip() == expected[: expected.index(stop)].strip()
    assert cut.finish_reason == "stop"
    sampled = {"model": server.model, "prompt": PROMPT, "temperature": 1.5}
    assert len({ask(**sampled, seed=3).choices[0].text for _ in range(2)}) == 1
    assert len({ask(**sampled).choices[0].text for _ in range(3)}) > 1


@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        ({"prompt": ""}, "prompt must be"),
        ({"prompt": ["a", "b"]}, "prompt must be"),
        ({"prompt": [1, 2]}, "prompt must be"),
        ({"echo": True}, "echo=True"),
        ({"suffix": "x"}, "suffix='x'"),
        ({"logprobs": 3}, "logprobs=3"),
        ({"best_of": 2}, "best_of=2"),
        ({"n": 2}, "n=2"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"temperature": 9}, "temperature=9"),
        ({"top_p": "much"}, "top_p: Input should be"),
        ({"prompt": "a " * 2_000_000}, "characters of text"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused(openai_client, server, parameters, part, stream):
    request = {"model": server.model, "prompt": PROMPT, "stream": stream, **parameters}
    with pytest.raises(openai.BadRequestError, match=part):
        openai_client.completions.create(**request)


def test_an_unknown_model_is_a_404(openai_client):
    with pytest.raises(openai.NotFoundError, match="no/such"):
        openai_client.completions.create(model="no/such", prompt=PROMPT)
