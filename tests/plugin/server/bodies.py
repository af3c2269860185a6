"""Requests as JSON bodies for each of the server's three APIs."""

import base64
import json
import urllib.request
from pathlib import Path
from typing import Any

from support import image_path

CHAT, RESPONSES, MESSAGES_API = "/v1/chat/completions", "/v1/responses", "/v1/messages"
ENDPOINTS = (CHAT, RESPONSES, MESSAGES_API)
# Characters of an error's message.
MAX_MESSAGE = 500


def picture_data(name: str) -> str:
    """A reference picture in base64."""
    return base64.b64encode(Path(image_path(name)).read_bytes()).decode()


def part(endpoint: str, data: str) -> dict[str, Any]:
    """The content part for a PNG whose base64 is ``data``."""
    if endpoint == MESSAGES_API:
        return {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": data},
        }
    uri = f"data:image/png;base64,{data}"
    if endpoint == RESPONSES:
        return {"type": "input_image", "image_url": uri}
    return {"type": "image_url", "image_url": {"url": uri}}


def body(
    endpoint: str, model: str, text: str, /, *pictures: str, max_tokens: int = 24, **parameters: Any
) -> dict[str, Any]:
    """A greedy request about ``pictures``, each in base64."""
    kind = "input_text" if endpoint == RESPONSES else "text"
    content = [part(endpoint, data) for data in pictures] + [{"type": kind, "text": text}]
    messages = [{"role": "user", "content": content}]
    if endpoint == RESPONSES:
        request = {"input": messages, "max_output_tokens": max_tokens}
    else:
        request = {"messages": messages, "max_tokens": max_tokens}
    return {"model": model, "temperature": 0, **request, **parameters}


def answer_text(endpoint: str, answer: dict[str, Any]) -> str:
    """The text of a complete answer, without surrounding space."""
    if endpoint == CHAT:
        text = answer["choices"][0]["message"]["content"]
    elif endpoint == RESPONSES:
        text = answer["output"][0]["content"][0]["text"] if answer["output"] else ""
    else:
        text = "".join(block["text"] for block in answer["content"])
    return (text or "").strip()


def delta_text(endpoint: str, event: dict[str, Any]) -> str:
    """The text that one event of a streamed answer adds."""
    if endpoint == CHAT:
        return (event["choices"][0]["delta"].get("content") or "") if event["choices"] else ""
    if endpoint == RESPONSES:
        return event["delta"] if event["type"] == "response.output_text.delta" else ""
    return event["delta"]["text"] if event["type"] == "content_block_delta" else ""


def get(server: Any, path: str) -> Any:
    """Decoded JSON of a GET, which must succeed."""
    with urllib.request.urlopen(server.url + path, timeout=60) as response:
        return json.loads(response.read())


def refusal(server, endpoint: str, request, *statuses: int) -> str:
    """The message of a 400, or of one of ``statuses``."""
    status, answer = server.post(endpoint, request)
    assert status in (statuses or (400,)), answer
    message = answer["error"]["message"]
    assert "\n" not in message
    assert len(message) <= MAX_MESSAGE
    assert len(json.dumps(answer)) <= 4 * MAX_MESSAGE
    return message
