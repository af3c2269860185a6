"""The bytes of an encoded picture: from a path, a URL, a data URI, memory or a file object."""

import base64
import binascii
import io
import os
import re
import stat
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from PIL import Image

from .picture_download import download

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_URL_SAFE_TO_BASE64 = bytes.maketrans(b"-_", b"+/")
_O_BINARY = getattr(os, "O_BINARY", 0)  # Windows
_O_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # everywhere else

LOCAL_FILES_REFUSED = (
    "Pictures on the server's disk are not read for requests; send the picture as a data URI, "
    "or its http or https address"
)


class PictureError(ValueError):
    """The given object cannot be used as a picture; the message is one bounded sentence."""


@dataclass(frozen=True)
class PictureLimits:
    """Limits on pictures.

    Args:
        max_pixels: width times height; None for Pillow's limit, twice
            ``PIL.Image.MAX_IMAGE_PIXELS`` (178,956,970).
        max_bytes: of an encoded picture: a file, a download, a data URI.
        timeout_s: for a whole download, from the name look-up to the last byte.
        local_files: whether a string may name a file of this machine.
        private_addresses: whether a URL may lead to this machine or its private networks.
    """

    max_pixels: int | None = None
    max_bytes: int = 2**28
    timeout_s: float = 30.0
    local_files: bool = True
    private_addresses: bool = True

    @property
    def pixel_limit(self) -> int | None:
        """``max_pixels`` or Pillow's limit; None if there is no limit."""
        if self.max_pixels is not None or Image.MAX_IMAGE_PIXELS is None:
            return self.max_pixels
        return 2 * Image.MAX_IMAGE_PIXELS

    @classmethod
    def from_environment(cls, **changes: Any) -> "PictureLimits":
        """Limits from ``MLX_VLM_MOXIN_MAX_PIXELS``, ``_MAX_PICTURE_BYTES``, ``_PICTURE_TIMEOUT``.

        Args:
            changes: fields with other values than these.

        Raises:
            ValueError: naming the variable whose value is not a positive number.
        """
        variables = {
            "max_pixels": ("MLX_VLM_MOXIN_MAX_PIXELS", int),
            "max_bytes": ("MLX_VLM_MOXIN_MAX_PICTURE_BYTES", int),
            "timeout_s": ("MLX_VLM_MOXIN_PICTURE_TIMEOUT", float),
        }
        values: dict[str, Any] = {}
        for name, (variable, kind) in variables.items():
            text = os.environ.get(variable)
            if not text:
                continue
            try:
                values[name] = kind(text)
            except ValueError:
                values[name] = 0
            if not values[name] > 0:
                raise ValueError(f"{variable}={text[:40]!r} must be a positive number")
        return cls(**{**values, **changes})


def open_source(source: Any, limits: PictureLimits) -> BinaryIO:
    """The encoded picture as a file that can be read several times; the caller closes it.

    Args:
        source: see ``picture.read_picture``; no PIL image, array or dictionary.

    Raises:
        PictureError: if ``source`` has a type that cannot contain a picture.
        OSError, ValueError: if its bytes cannot be read, with the reason.
    """
    if isinstance(source, str):
        return _open_string(source.strip(), limits)
    if isinstance(source, os.PathLike):
        return _open_file(os.fspath(source), limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _in_memory(bytes(source), limits)
    if callable(getattr(source, "read", None)):
        return _in_memory(_read_stream(source, limits), limits)
    raise PictureError(
        f"Cannot use {type(source).__name__} as a picture; give a path, a URL, bytes, a binary "
        "file, a PIL image or an array"
    )


def _open_string(source: str, limits: PictureLimits) -> BinaryIO:
    if not source:
        raise ValueError("it names nothing")
    if source[:5].lower() == "data:":
        return _in_memory(_data_uri_bytes(source, limits), limits)
    scheme = _SCHEME.match(source)
    if scheme is None:
        return _open_file(source, limits)
    if scheme[0].lower() == "file://":
        return _open_file(url2pathname(urlsplit(source).path), limits)
    if scheme[0].lower() not in ("http://", "https://"):
        raise ValueError(f"{scheme[0]} is no supported kind of address (http, https, data, file)")
    data = download(
        source,
        max_bytes=limits.max_bytes,
        timeout_s=limits.timeout_s,
        private_addresses=limits.private_addresses,
    )
    return _in_memory(data, limits)


def _data_uri_bytes(uri: str, limits: PictureLimits) -> bytes:
    """The data of ``data:[type][;parameters][;base64],data``."""
    header, comma, data = uri.partition(",")
    if not comma:
        raise ValueError("a data URI has a comma before its data")
    if len(data) > 4 * limits.max_bytes:
        raise ValueError(f"its data is longer than the limit of {limits.max_bytes} bytes")
    if header.rpartition(";")[2].strip().lower() != "base64":
        return unquote_to_bytes(data)
    encoded = unquote_to_bytes(data) if "%" in data else data.encode("ascii", "replace")
    encoded = b"".join(encoded.split()).translate(_URL_SAFE_TO_BASE64)
    if len(encoded) % 4:
        raise ValueError(
            f"its base64 has {len(encoded)} characters, which is no multiple of 4: some are "
            "missing, or the padding is"
        )
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"its base64 is damaged ({error})") from error


def _open_file(path: str | bytes, limits: PictureLimits) -> BinaryIO:
    if not limits.local_files:
        raise PictureError(LOCAL_FILES_REFUSED)
    # Without O_NONBLOCK, opening a pipe would wait for a writer.
    file = open(os.open(path, os.O_RDONLY | _O_NONBLOCK | _O_BINARY), "rb")  # noqa: SIM115
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
            raise ValueError(f"it is {kind}, not a file")
        _check_size(status.st_size, limits)
    except ValueError:
        file.close()
        raise
    return file


def _read_stream(stream: BinaryIO, limits: PictureLimits) -> bytes:
    """All of a file object, from its beginning if it can be rewound, as Pillow does."""
    if callable(getattr(stream, "seekable", None)) and stream.seekable():
        stream.seek(0)
    data = stream.read(limits.max_bytes + 1)
    if not isinstance(data, bytes):
        raise ValueError(f"it gives {type(data).__name__}, not bytes; open it in binary mode")
    return data


def _in_memory(data: bytes, limits: PictureLimits) -> BinaryIO:
    _check_size(len(data), limits)
    return io.BytesIO(data)


def _check_size(size: int, limits: PictureLimits) -> None:
    if size == 0:
        raise ValueError("it is empty")
    if size > limits.max_bytes:
        raise ValueError(f"it is larger than the limit of {limits.max_bytes} bytes")
