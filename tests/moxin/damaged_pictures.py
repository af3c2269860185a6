"""Damaged picture files, made from a good one; name -> bytes."""

import io
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image, PngImagePlugin
from support import image_path


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    """``image``, by default a small photograph, as a file of ``kind``."""
    if image is None:
        image = Image.open(image_path("photo")).convert("RGB").resize((64, 48))
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flipped(data: bytes, position: int) -> bytes:
    """``data`` with one bit changed."""
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png_with(kind: bytes, data: bytes) -> bytes:
    """A good PNG with one more chunk before its pixels."""
    png = encoded("PNG")
    start = png.index(b"IDAT") - 4
    return png[:start] + png_chunk(kind, data) + png[start:]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims ``width`` x ``height`` pixels and holds none of them."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", size) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@cache
def damaged_pictures() -> dict[str, bytes]:
    png, bomb = encoded("PNG"), zlib.compress(bytes(2**26))
    cut = {f"{kind} cut": encoded(kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")}
    text = PngImagePlugin.PngInfo()
    text.add_text("key", "x" * 2**21, zip=True)
    return {
        **{name: data[: len(data) // 2] for name, data in cut.items()},
        "PNG without its last byte": encoded("PNG")[:-20],
        "PNG with a flipped bit": flipped(png, len(png) - 60),
        "PNG with a zTXt bomb": png_with(b"zTXt", b"key\0\0" + bomb),
        "PNG with an iCCP bomb": png_with(b"iCCP", b"key\0\0" + bomb),
        "PNG with a large iTXt": encoded("PNG", pnginfo=text),
        "PNG of 60000 x 60000": png_header(60000, 60000),
        "PNG of 0 x 4": png_header(0, 4),
        "PPM without a size": b"P6\n",
        "PPM of letters": b"P6\nab cd\n255\n",
        "PPM of negative size": b"P6\n-4 4\n255\n" + bytes(48),
        "PPM of too large a value": b"P3\n1 1\n255\n999 0 0\n",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "TIFF of floats": encoded("TIFF", Image.fromarray(np.ones((4, 4), np.float32))),
        "TIFF of 32 bits": encoded("TIFF", Image.fromarray(np.ones((4, 4), np.int32))),
        "text": b"hello",
        "nothing": b"",
    }
