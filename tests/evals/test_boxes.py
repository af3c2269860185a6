"""Boxes: what counts as one, and their overlap, computed by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_vlm_moxin.evals.scores.boxes import iou, parse_box, relative_box

UNIT = st.floats(0, 1, allow_nan=False)
BOXES = st.tuples(UNIT, UNIT, UNIT, UNIT).filter(lambda b: b[2] - b[0] > 1e-6 < b[3] - b[1])


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.13, 0.2, 0.55, 0.9]", [0.13, 0.2, 0.55, 0.9]),
        ("[0, 0, 1, 1]", [0, 0, 1, 1]),
        ("[0.1,0.1,0.2,0.2]", [0.1, 0.1, 0.2, 0.2]),
        ("(0.13, 0.2, 0.55, 0.9)", None),
        ("0.13, 0.2, 0.55, 0.9", None),
        ("[0.13, 0.2, 0.55, 0.9].", None),
        ("[0.13, 0.2, 0.55]", None),
        ("[0.13, 0.2, 0.55, 0.9, 1]", None),
        ("[0.13, 0.2, 0.55, 0.9", None),
        ("[0.55, 0.2, 0.13, 0.9]", None),
        ("[0.13, 0.2, 0.13, 0.9]", None),
        ("[0.13, 0.9, 0.55, 0.2]", None),
        ("[0.13, 0.2, 0.55, 1.01]", None),
        ("[-0.1, 0.2, 0.55, 0.9]", None),
        ("['0.1', 0.2, 0.55, 0.9]", None),
        ("[1j, 0.2, 0.55, 0.9]", None),
        ("[0.1, 0.2, 0.55, 1e999]", None),
        ("[[0.1, 0.2, 0.55, 0.9]]", None),
        ("the left one", None),
        ("", None),
        ("[" * 20000, None),
        ("__import__('os').getcwd()", None),
    ],
)
def test_a_box_is_a_list_of_four_numbers_and_nothing_else(text, box):
    assert parse_box(text) == box


@given(st.text())
def test_any_text_is_read_as_a_box_or_none(text):
    box = parse_box(text)
    assert box is None or (box[0] < box[2] and box[1] < box[3])


@given(BOXES)
def test_a_box_that_is_written_down_is_read_back(box):
    assert parse_box(str([*box])) == [*box]


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        # Areas 4 and 4, shared 2: 2 / 6.
        ([0, 0, 2, 2], [1, 0, 3, 2], 1 / 3),
        # Areas 4 and 1, shared 1: 1 / 4.
        ([0, 0, 2, 2], [0, 0, 1, 1], 1 / 4),
        # Areas 2 and 1, shared 1: 1 / 2, the bound of RefCOCO.
        ([0, 0, 2, 1], [0, 0, 1, 1], 1 / 2),
        ([0, 0, 1, 1], [1, 0, 2, 1], 0),
        ([0, 0, 1, 1], [5, 5, 6, 6], 0),
        ([0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5], 0),
        ([0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], 0),
    ],
)
def test_overlap_equals_values_computed_by_hand(first, second, value):
    assert iou(first, second) == pytest.approx(value, abs=1e-12)


@given(BOXES, BOXES)
def test_overlap_is_symmetric_and_between_0_and_1(first, second):
    value = iou(first, second)
    assert value == pytest.approx(iou(second, first), abs=1e-9)
    assert 0 <= value <= 1 + 1e-9
    assert iou(first, first) == pytest.approx(1)


def test_right_boxes_are_fractions_rounded_to_two_decimals():
    assert relative_box([10, 20, 110, 220], 640, 480) == [0.02, 0.04, 0.17, 0.46]
    assert relative_box([0, 0, 640, 480], 640, 480) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "corners", [[10, 20, 10, 30], [10, 30, 20, 20], [0, 0, 641, 480], [0, 0, 10, float("nan")]]
)
def test_a_right_box_that_cannot_be_is_refused(corners):
    with pytest.raises(ValueError, match="does not fit into 640 x 480"):
        relative_box(corners, 640, 480)
