"""A Pillow picture's memory without a copy, through Arrow's C interface."""

import ctypes

import numpy as np
from PIL import Image

BYTES_PER_PIXEL = 4
# Pixels that are compared first: pictures that differ mostly differ there.
_FIRST_PIXELS = 2**12


class _ArrowArray(ctypes.Structure):
    """``struct ArrowArray``, as far as it is read."""


_ArrowArray._fields_ = (
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
)
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def pixels_of(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB picture: red, green, blue and an undefined byte each.

    Returns:
        uint32 ``[height * width]``, the picture's memory if Pillow (11.2 or later) has it in one
        block, and otherwise a copy. It must not be changed.
    """
    count = image.width * image.height
    try:
        _, capsule = image.__arrow_c_array__()
    except (AttributeError, ValueError):
        return np.frombuffer(image.tobytes("raw", "RGBX"), np.uint32)
    array = ctypes.cast(_pointer_of(capsule, b"arrow_array"), ctypes.POINTER(_ArrowArray)).contents
    # A list of four bytes for each pixel.
    memory = (ctypes.c_uint32 * count).from_address(array.children[0].contents.buffers[1])
    memory.owner = capsule
    return np.frombuffer(memory, np.uint32)


def have_equal_pixels(first: Image.Image, second: Image.Image) -> bool:
    """Whether two RGB pictures are equal; rarely False for equal ones, by their undefined bytes."""
    if first.size != second.size:
        return False
    left, right = pixels_of(first), pixels_of(second)
    is_equal = np.array_equal(left[:_FIRST_PIXELS], right[:_FIRST_PIXELS])
    return is_equal and np.array_equal(left, right)
