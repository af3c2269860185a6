"""Reads and prepares pictures of requests in separate threads.

mlx-vlm reads pictures while it holds its tokenizer's lock, several times each, in the same few
threads in which all other requests wait for their tokens; a slow address would block all of them.
Here a picture is read once, before the rest of its request is handled. Waiting for a network and
decoding use different threads, and only one large picture is decoded at a time.
"""

import asyncio
import ctypes
import hashlib
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Lock
from typing import Any, BinaryIO

from mlx_vlm.models.moxin.picture import decode, named_errors
from mlx_vlm.models.moxin.picture_sources import PictureLimits, open_source
from mlx_vlm.models.moxin.prepared_picture import PreparedPicture
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from PIL import Image

from mlx_vlm_moxin.plugin.picture_inputs import resized
from mlx_vlm_moxin.plugin.server_settings import ServerSettings

# Threads that wait; each may hold a picture of ServerSettings.max_body_bytes.
DOWNLOADS_AT_ONCE = 32
DECODINGS_AT_ONCE = 4
# A picture with more pixels waits while another such picture is decoded.
LARGE_PICTURE_PIXELS = 2**24
# After a picture with more pixels, free memory is returned to the system.
TRIMMED_PIXELS = 2**21
# Pictures of stored responses, about a megabyte each.
REMEMBERED = 32

_downloads = ThreadPoolExecutor(DOWNLOADS_AT_ONCE, "picture-download")
_decodings = ThreadPoolExecutor(DECODINGS_AT_ONCE, "picture-decoding")
_large_picture = Lock()


class PictureReader:
    """Reads pictures for one model."""

    def __init__(self, processor: MoxinProcessor):
        self._processor = processor
        self._remembered: OrderedDict[bytes, PreparedPicture] = OrderedDict()
        self._lock = Lock()

    async def read(self, source: str, resize_shape: Any = None) -> PreparedPicture:
        """A picture, read once and prepared for the model.

        Args:
            source: path, URL or data URI.
            resize_shape: the request's, normalised by mlx-vlm.

        Raises:
            PictureError: naming what cannot be used as a picture, and why.
        """
        limits = ServerSettings.from_environment().picture_limits()
        loop = asyncio.get_running_loop()
        file = await loop.run_in_executor(_downloads, _open, source, limits)
        arguments = (source, file, limits, resize_shape)
        return await loop.run_in_executor(_decodings, self._prepare, *arguments)

    def read_now(self, source: Any, resize_shape: Any = None) -> PreparedPicture:
        """``read`` for a caller that may block; also finds pictures of stored responses."""
        if isinstance(source, str) and resize_shape is None:
            with self._lock:
                known = self._remembered.get(_code(source))
            if known is not None:
                return known
        limits = ServerSettings.from_environment().picture_limits()
        return self._prepare(source, _open(source, limits), limits, resize_shape)

    def remember(self, source: str, picture: PreparedPicture) -> None:
        """Keep a picture for requests that continue the response to this one."""
        with self._lock:
            self._remembered[_code(source)] = picture
            self._remembered.move_to_end(_code(source))
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)

    def _prepare(
        self, source: Any, file: BinaryIO, limits: PictureLimits, resize_shape: Any
    ) -> PreparedPicture:
        pixels = 0
        try:
            with file, named_errors(source):
                with Image.open(file) as header:
                    pixels = header.width * header.height
                file.seek(0)
                with _large_picture if pixels > LARGE_PICTURE_PIXELS else nullcontext():
                    picture = resized(decode(file, limits), resize_shape)
                    prepared = self._processor.prepare_picture(picture)
                    del picture
                    return prepared
        finally:
            if pixels > TRIMMED_PIXELS:
                _trim_memory()


def _code(source: str) -> bytes:
    return hashlib.sha256(source.encode()).digest()


def _open(source: Any, limits: PictureLimits) -> BinaryIO:
    with named_errors(source):
        return open_source(source, limits)


def _trim_memory() -> None:
    """Return free memory: glibc keeps the blocks in which Pillow held a large picture."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
