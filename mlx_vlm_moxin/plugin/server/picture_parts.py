"""Finds and checks the pictures in a request's messages, and moves them where they are used.

mlx-vlm's endpoints drop a picture that is not in a user's message, or whose source they do not
support, and answer without it. The position of a picture makes no difference to Moxin, whose
visual tokens always come first, so a picture in another message is moved to a user's message; an
empty source is refused.
"""

from collections.abc import Iterator
from typing import Any

from mlx_vlm_moxin.plugin.server.errors import BadRequestError

CHAT = "/chat/completions"
RESPONSES = "/responses"
MESSAGES = "/messages"
# Content parts that are neither text nor a picture, which Moxin cannot use.
_OTHER_MEDIA = {
    "input_audio": "audio",
    "input_video": "video",
    "video_url": "video",
    "video": "video",
    "input_file": "a file",
    "file": "a file",
    "document": "a document",
}
_KINDS = {
    CHAT: ("image_url", "input_image"),
    RESPONSES: ("input_image", "image_url"),
    MESSAGES: ("image",),
}

Part = dict[str, Any]


def picture_sources(endpoint: str, body: dict[str, Any]) -> list[str]:
    """The pictures of a request, moved to where the endpoint reads them.

    Args:
        endpoint: one of the names above, or one without messages.
        body: the request, changed in place.

    Returns:
        Paths, URLs or data URIs, in mlx-vlm's form.

    Raises:
        BadRequestError: for other media than pictures, and for an unusable source.
    """
    messages = body.get("input" if endpoint == RESPONSES else "messages")
    if endpoint not in _KINDS or not isinstance(messages, list):
        return []
    sources, moved = [], []
    for path, owner, key, is_user in _contents(endpoint, body, messages):
        kept = []
        for index, part in enumerate(owner[key]):
            kind = part.get("type") if isinstance(part, dict) else None
            if not isinstance(kind, str):
                kept.append(part)
                continue
            place = f"{path}.{index}"
            if kind in _OTHER_MEDIA:
                raise BadRequestError(
                    f"{place} is {_OTHER_MEDIA[kind]}: Moxin takes text and a picture"
                )
            if kind not in _KINDS[endpoint]:
                kept.append(part)
                continue
            part, source = _normalized(part, kind, place)
            sources.append(source)
            (kept if is_user else moved).append(part)
        owner[key] = kept
    if moved:
        _give_to_user(endpoint, messages, moved)
    return sources


def _contents(
    endpoint: str, body: dict[str, Any], messages: list[Any]
) -> Iterator[tuple[str, dict[str, Any], str, bool]]:
    """Path, owner and key of every list of content parts, and whether it is a user's."""
    if isinstance(body.get("system"), list) and endpoint == MESSAGES:
        yield "system", body, "system", False
    name = "input" if endpoint == RESPONSES else "messages"
    for index, message in enumerate(messages):
        if isinstance(message, dict) and isinstance(message.get("content"), list):
            role = message.get("role", "user" if endpoint == RESPONSES else None)
            # A tool's output belongs to no message that a picture could be moved to.
            if role != "tool":
                yield f"{name}.{index}.content", message, "content", role == "user"


def _give_to_user(endpoint: str, messages: list[Any], parts: list[Part]) -> None:
    """Put ``parts`` before the text of the last message of a user."""
    users = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"]
    if not users:
        raise BadRequestError("A picture needs a message of the user that it belongs to")
    content = users[-1].get("content")
    if isinstance(content, str):
        kind = "input_text" if endpoint == RESPONSES else "text"
        content = [{"type": kind, "text": content}]
    users[-1]["content"] = [*parts, *(content or [])]


def _normalized(part: Part, kind: str, place: str) -> tuple[Part, str]:
    """``part`` in the form that mlx-vlm reads, and its source.

    Raises:
        BadRequestError: naming ``place``.
    """
    if kind == "image":
        source = _anthropic_source(part.get("source"), place)
        return part, source
    if part.get("file_id") is not None:
        raise BadRequestError(f"{place}: there are no uploaded files; send image_url")
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str) or not url.strip():
        raise BadRequestError(
            f"{place}: image_url must name a picture by a URL or a data URI, got {_shown(given)}"
        )
    return {**part, "image_url": {"url": url} if kind == "image_url" else url}, url


def _anthropic_source(source: Any, place: str) -> str:
    if isinstance(source, dict):
        data, media_type = source.get("data"), source.get("media_type") or "image/png"
        if source.get("type") == "url" and isinstance(source.get("url"), str) and source["url"]:
            return source["url"]
        if source.get("type") == "base64" and isinstance(data, str) and data:
            return f"data:{media_type};base64,{data}"
    raise BadRequestError(
        f"{place}: source must be a picture as {{type: base64, media_type, data}} or {{type: url, "
        f"url}}, got {_shown(source)}"
    )


def _shown(value: Any) -> str:
    return repr(value)[:60]
