"""One picture in every form, and the message of the error for a source that is refused."""

import base64
import io
import pathlib
from urllib.parse import quote

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm.models.moxin.picture import read_picture
from mlx_vlm.models.moxin.picture_sources import PictureError, PictureLimits
from PIL import Image
from support import image_path

PHOTO = pathlib.Path(image_path("photo"))
DATA = PHOTO.read_bytes()
BASE64 = base64.b64encode(DATA).decode()
PIXELS = np.asarray(Image.open(PHOTO).convert("RGB"))
GREY = np.asarray(Image.open(PHOTO).convert("L"))
MAX_MESSAGE = 500


def refusal(source, **limits) -> str:
    """The message of the error for ``source``."""
    with pytest.raises(PictureError) as caught:
        read_picture(source, PictureLimits(**limits))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= MAX_MESSAGE
    return message


FORMS = {
    "path": str(PHOTO),
    "Path": PHOTO,
    "file URL": PHOTO.as_uri(),
    "spaces around": f" {PHOTO}\n",
    "PIL": Image.open(PHOTO),
    "bytes": DATA,
    "bytearray": bytearray(DATA),
    "memoryview": memoryview(DATA),
    "BytesIO": io.BytesIO(DATA),
    "bytes of a data set": {"bytes": DATA, "path": None},
    "path of a data set": {"bytes": None, "path": str(PHOTO)},
    "bytes win": {"bytes": DATA, "path": "/no/such.png"},
    "data URI": f"data:image/png;base64,{BASE64}",
    "data URI without a type": f"data:;base64,{BASE64}",
    "data URI of a general type": f"data:application/octet-stream;base64,{BASE64}",
    "data URI in capitals": f"DATA:image/png;BASE64,{BASE64}",
    "data URI with a parameter": f"data:image/png;name=a;base64,{BASE64}",
    "data URI in lines": f"data:image/png;base64,{BASE64[:76]}\r\n{BASE64[76:]}",
    "data URI, URL-safe": "data:;base64," + base64.urlsafe_b64encode(DATA).decode(),
    "data URI, escaped base64": "data:image/png;base64," + quote(BASE64),
    "data URI, percent-encoded": "data:image/png," + quote(DATA),
    "array [H, W, 3]": PIXELS,
    "array [3, H, W]": PIXELS.transpose(2, 0, 1),
    "array [H, W, 4]": np.dstack([PIXELS, GREY]),
    "array [4, H, W]": np.dstack([PIXELS, GREY]).transpose(2, 0, 1),
    "floats": PIXELS / 255,
    "float32": np.float32(PIXELS) / 255,
    "float16": (np.float32(PIXELS) / 255).astype(np.float16),
    "uint16": np.uint16(PIXELS) * 257,
    "a view": np.repeat(PIXELS, 2, axis=0)[::2],
    "mx.array": mx.array(PIXELS),
    "mx.array [3, H, W]": mx.array(PIXELS).transpose(2, 0, 1),
    "mx float32": mx.array(np.float32(PIXELS) / 255),
}
