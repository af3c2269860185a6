"""Arrays that know whether they were written in place."""

import copy
import operator
import pickle

import mlx.core as mx
import pytest
from mlx_vlm.models.moxin.cuda.tracked_array import WRITING, TrackedArray, track

# Those of `dir(mx.array)` that begin like the others but write nothing.
OTHERS = {"__index__", "__init_subclass__", "__int__", "__invert__", "__iter__"}


def test_it_is_the_array(on_cpu):
    array = mx.arange(6).reshape(2, 3)
    tracked = track(array, OWNER)
    assert isinstance(tracked, mx.array)
    assert (tracked.shape, tracked.dtype) == (array.shape, array.dtype)
    assert mx.array_equal(tracked, array).item()
    assert tracked.owner is OWNER


def test_it_shares_the_arrays_memory(on_cpu):
    array = mx.zeros(1 << 20, mx.uint8)
    mx.eval(array)
    before = mx.get_active_memory()
    tracked = track(array, OWNER)
    mx.eval(tracked)
    assert mx.get_active_memory() - before < 1 << 10


def test_every_method_that_writes_is_noted():
    begin_like_them = {name for name in dir(mx.array) if name.startswith("__i")}
    assert begin_like_them - OTHERS <= set(WRITING)
    assert {"__setitem__", "__setstate__"} <= set(WRITING)


OWNER = object()
ARGUMENTS = {"__imatmul__": mx.ones((2, 2)), "__ilshift__": 1, "__irshift__": 1}


@pytest.mark.parametrize("name", [name for name in WRITING if name.startswith("__i")])
def test_operators_give_what_they_give_without_a_note(name, on_cpu):
    if name == "__init__":
        return
    dtype = mx.float32 if name in ("__imatmul__", "__itruediv__", "__ipow__") else mx.int32
    array = mx.array([[5, 6], [7, 8]], dtype)
    tracked, writes = track(array, OWNER), TrackedArray.writes
    same, operate = tracked, getattr(operator, name)
    tracked = operate(tracked, ARGUMENTS.get(name, 2))
    assert tracked is same
    assert tracked.owner is None
    assert TrackedArray.writes != writes
    expected = operate(mx.array([[5, 6], [7, 8]], dtype), ARGUMENTS.get(name, 2))
    assert mx.array_equal(tracked, expected).item()
    assert array.tolist() == [[5, 6], [7, 8]]


def test_assigned_elements_are_noted(on_cpu):
    tracked = track(mx.zeros(3), OWNER)
    tracked[1] = 5
    assert tracked.owner is None
    assert tracked.tolist() == [0, 5, 0]


def test_reading_and_other_arrays_are_not_noted(on_cpu):
    writes = TrackedArray.writes
    tracked = track(mx.zeros(3), OWNER)
    other = tracked[1:] + tracked.at[1:].add(1)[1:]
    other += 1
    mx.eval(other)
    assert tracked.owner is OWNER
    assert TrackedArray.writes == writes


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda array: pickle.loads(pickle.dumps(array))]
)
def test_copies_are_plain_arrays(duplicate, on_cpu):
    array = duplicate(track(mx.arange(3), OWNER))
    assert type(array) is mx.array
    assert array.tolist() == [0, 1, 2]
