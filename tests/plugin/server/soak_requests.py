"""The requests of the soak, and how their answers are read."""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bodies import (
    CHAT,
    ENDPOINTS,
    MESSAGES_API,
    RESPONSES,
    answer_text,
    body,
    delta_text,
    picture_data,
)
from damaged_pictures import damaged_pictures
from support import IMAGE_NAMES, MESSAGES

# The last event of a complete stream.
_ENDS = {
    CHAT: ("[DONE]",),
    RESPONSES: ("response.completed", "response.incomplete"),
    MESSAGES_API: ("message_stop",),
}


@dataclass(frozen=True, eq=False)
class Request:
    """A POST of ``data`` or, if that is None, of ``body`` as JSON."""

    name: str
    path: str
    body: dict[str, Any] = field(default_factory=dict)
    data: bytes | None = None

    def text(self, answer: dict[str, Any]) -> str:
        """The text of a complete answer; for an error, the whole body."""
        return json.dumps(answer) if answer.get("error") else answer_text(self.path, answer)


def good_requests(model: str) -> list[Request]:
    """Every API, with and without a picture, greedy, sampled, stopped, in several turns."""
    requests = []
    for n, name in enumerate(IMAGE_NAMES):
        for index, message in enumerate(MESSAGES):
            path = ENDPOINTS[(n + index) % 3]
            picture = picture_data(name)
            lengths = {"max_tokens": 8 * (n + 1)}
            requests.append(
                Request(f"{name} {index}", path, body(path, model, message, picture, **lengths))
            )
    for path in ENDPOINTS:
        requests.append(Request(f"text {path}", path, body(path, model, MESSAGES[0])))
    picture = picture_data("photo")
    for seed in range(4):
        sampled = {"temperature": 1, "seed": seed}
        requests.append(
            Request(f"seed {seed}", CHAT, body(CHAT, model, MESSAGES[0], picture, **sampled))
        )
    stopped = body(CHAT, model, MESSAGES[0], picture, stop=["tu"])
    requests.append(Request("stop", CHAT, stopped))
    turns = body(CHAT, model, MESSAGES[0], picture, max_tokens=40)
    turns["messages"] += [
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": MESSAGES[2]},
    ]
    requests.append(Request("turns", CHAT, turns))
    for path in ENDPOINTS:
        nulls = dict.fromkeys(("temperature", "top_p", "stop", "tools", "seed", "stream"))
        plain = body(path, model, MESSAGES[0], picture)
        requests.append(Request(f"nulls {path}", path, {**nulls, **plain}))
    return requests


def bad_requests(model: str) -> list[Request]:
    """Invalid requests: input, parameters, a model, a body."""
    requests = []
    photo, tall = picture_data("photo"), picture_data("tall")
    for path in ENDPOINTS:
        bad = {
            "bad picture": body(path, model, MESSAGES[0], "aGVsbG8="),
            "two pictures": body(path, model, MESSAGES[0], photo, tall),
            "unknown model": body(path, "no/such-model", MESSAGES[0]),
            "top_k": body(path, model, MESSAGES[0], photo, top_k=10**6),
            "logit_bias": body(path, model, MESSAGES[0], photo, logit_bias={"99999": 1}),
            "max_tokens": body(path, model, MESSAGES[0], photo, max_tokens=0),
        }
        requests += [Request(f"{name} {path}", path, request) for name, request in bad.items()]
        requests.append(Request(f"no JSON {path}", path, data=b"{"))
        for name, data in damaged_pictures().items():
            damaged = base64.b64encode(data).decode()
            requests.append(Request(f"{name} {path}", path, body(path, model, "a", damaged)))
    return requests


def stream_text(path: str, lines: Iterable[bytes]) -> str:
    """The text of a streamed answer, without surrounding space.

    Raises:
        ValueError: if the stream ends before its answer, or with an error.
    """
    text, last = "", None
    for line in lines:
        if not line.startswith(b"data: "):
            continue
        data = line[len(b"data: ") :].decode().strip()
        last = data
        if data == "[DONE]":
            continue
        event = json.loads(data)
        if event.get("error"):
            raise ValueError(f"the stream ended with {data}")
        last = event.get("type")
        text += delta_text(path, event)
    if last not in _ENDS[path]:
        raise ValueError(f"the stream ended early, with {last!r}")
    return text.strip()
