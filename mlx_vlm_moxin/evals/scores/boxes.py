"""Boxes that a model writes as text, and their overlap with the correct box.

A box is ``[x1, y1, x2, y2]``, each coordinate a fraction of the picture's width or height.
Reference: TRI-ML/vlm-evaluation, ``vlm_eval/tasks/harnesses/refcoco.py``.
"""

import ast
import math
from collections.abc import Sequence

Box = list[float]
# A box has about 30 characters. Longer texts are not boxes, and Python's parser would need much
# memory for deeply nested ones.
MAX_CHARACTERS = 1000


def parse_box(text: str) -> Box | None:
    """The box if all of ``text`` is a Python literal of one, else None.

    A box is a list of four numbers in [0, 1] with x1 < x2 and y1 < y2.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(isinstance(number, (int, float)) and 0 <= number <= 1 for number in value):
        return None
    x1, y1, x2, y2 = map(float, value)
    return [x1, y1, x2, y2] if x1 < x2 and y1 < y2 else None


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes by continuous area, 0 to 1."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (first, second)]
    # The correct box has no area if rounding has made two of its sides equal.
    union = sum(areas) - shared
    return shared / union if union else 0.0


def relative_box(corners: Sequence[float], width: float, height: float) -> Box:
    """A box in pixels, ``[x1, y1, x2, y2]``, as fractions rounded to two decimals.

    Raises:
        ValueError: if it is empty, reaches beyond the picture or is not finite.
    """
    x1, y1, x2, y2 = corners
    if not all(map(math.isfinite, corners)) or not (x1 < x2 <= width and y1 < y2 <= height):
        raise ValueError(f"the box {[*corners]} does not fit into {width} x {height} pixels")
    return [
        round(x1 / width, 2),
        round(y1 / height, 2),
        round(x2 / width, 2),
        round(y2 / height, 2),
    ]
