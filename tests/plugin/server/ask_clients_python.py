"""Ask a server about a picture with each Python client; ``ask_clients.py`` runs it.

Reads one JSON object from standard input: ``url``, ``model``, ``picture`` (a PNG in base64) and
``questions``. Writes a JSON line for each answer: ``client``, ``way``, ``question``, ``answer``.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import anthropic
import litellm
import openai
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI

TASK = json.load(sys.stdin)
URL, MODEL, PICTURE = TASK["url"], TASK["model"], TASK["picture"]
DATA_URI = f"data:image/png;base64,{PICTURE}"
KEY, MAX_TOKENS = "none", 32


def chat_messages(question: str) -> list[dict[str, Any]]:
    """Messages in the form of OpenAI's chat completions, LangChain and litellm."""
    picture = {"type": "image_url", "image_url": {"url": DATA_URI}}
    return [{"role": "user", "content": [{"type": "text", "text": question}, picture]}]


def anthropic_messages(question: str) -> list[dict[str, Any]]:
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
    parts = [{"type": "image", "source": source}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def openai_chat(question: str) -> str:
    answer = OPENAI.chat.completions.create(
        model=MODEL, messages=chat_messages(question), max_tokens=MAX_TOKENS, temperature=0
    )
    return answer.choices[0].message.content


def openai_chat_stream(question: str) -> str:
    stream = OPENAI.chat.completions.create(
        model=MODEL, messages=chat_messages(question), max_tokens=MAX_TOKENS, stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def responses_input(question: str) -> list[dict[str, Any]]:
    parts = [
        {"type": "input_text", "text": question},
        {"type": "input_image", "image_url": DATA_URI},
    ]
    return [{"role": "user", "content": parts}]


def openai_responses(question: str) -> str:
    answer = OPENAI.responses.create(
        model=MODEL, input=responses_input(question), max_output_tokens=MAX_TOKENS, temperature=0
    )
    return answer.output_text


def openai_responses_stream(question: str) -> str:
    with OPENAI.responses.stream(
        model=MODEL, input=responses_input(question), max_output_tokens=MAX_TOKENS
    ) as stream:
        for _ in stream:
            pass
        return stream.get_final_response().output_text


def anthropic_plain(question: str) -> str:
    answer = ANTHROPIC.messages.create(
        model=MODEL, messages=anthropic_messages(question), max_tokens=MAX_TOKENS
    )
    return "".join(block.text for block in answer.content)


def anthropic_stream(question: str) -> str:
    with ANTHROPIC.messages.stream(
        model=MODEL, messages=anthropic_messages(question), max_tokens=MAX_TOKENS
    ) as stream:
        return stream.get_final_text()


def litellm_completion(provider: str, base: str, question: str, **options: Any) -> Any:
    return litellm.completion(
        f"{provider}/{MODEL}",
        messages=chat_messages(question),
        api_base=base,
        api_key=KEY,
        max_tokens=MAX_TOKENS,
        **options,
    )


def litellm_plain(provider: str, base: str) -> Callable[[str], str]:
    def ask(question: str) -> str:
        return litellm_completion(provider, base, question).choices[0].message.content

    return ask


def litellm_stream(provider: str, base: str) -> Callable[[str], str]:
    def ask(question: str) -> str:
        stream = litellm_completion(provider, base, question, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    return ask


def langchain_plain(model: Any) -> Callable[[str], str]:
    return lambda question: model.invoke(chat_messages(question)).text


def langchain_stream(model: Any) -> Callable[[str], str]:
    return lambda question: "".join(part.text for part in model.stream(chat_messages(question)))


OPENAI = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
ANTHROPIC = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
_FIXED = {"model": MODEL, "api_key": KEY, "max_retries": 0, "max_tokens": MAX_TOKENS}
LANGCHAIN = {
    "langchain-openai, chat": ChatOpenAI(base_url=f"{URL}/v1", temperature=0, **_FIXED),
    "langchain-openai, responses": ChatOpenAI(
        base_url=f"{URL}/v1", use_responses_api=True, **_FIXED
    ),
    "langchain-anthropic": ChatAnthropic(base_url=URL, **_FIXED),
}
LITELLM = {"openai": f"{URL}/v1", "anthropic": URL}
CLIENTS: dict[tuple[str, str], Callable[[str], str]] = {
    ("openai, chat", "plain"): openai_chat,
    ("openai, chat", "streamed"): openai_chat_stream,
    ("openai, responses", "plain"): openai_responses,
    ("openai, responses", "streamed"): openai_responses_stream,
    ("anthropic", "plain"): anthropic_plain,
    ("anthropic", "streamed"): anthropic_stream,
}
for name, chat_model in LANGCHAIN.items():
    CLIENTS[name, "plain"] = langchain_plain(chat_model)
    CLIENTS[name, "streamed"] = langchain_stream(chat_model)
for name, address in LITELLM.items():
    CLIENTS[f"litellm, {name}", "plain"] = litellm_plain(name, address)
    CLIENTS[f"litellm, {name}", "streamed"] = litellm_stream(name, address)

for (client, way), ask in CLIENTS.items():
    for question in TASK["questions"]:
        try:
            answer = ask(question)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        line = {"client": f"Python {client}", "way": way, "question": question, "answer": answer}
        print(json.dumps(line), flush=True)
