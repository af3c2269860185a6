"""Arrays in JSON, compared with the package that robots' clients use."""

import json

import json_numpy as package
import numpy as np
import pytest

from mlx_vlm_moxin.actions import json_numpy

VALUES = [
    np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
    np.linspace(-1, 1, 7),
    np.zeros((0, 3), np.float32),
    np.array([[1, 2], [3, 4]]).T,
    np.float32(0.5),
    np.array(3, np.int32),
    np.array([True, False]),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{value.dtype}{value.shape}")
def test_both_read_what_the_other_writes(value):
    for written, read in ((package.dumps, json_numpy.loads), (json_numpy.dumps, package.loads)):
        result = read(written({"nested": [value, "text", None]}))["nested"]
        assert result[1:] == ["text", None]
        assert result[0].dtype == value.dtype
        np.testing.assert_array_equal(result[0], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "|O"}, "dtype object"),
        ({"dtype": "nonsense"}, "malformed"),
        ({"dtype": None}, "malformed"),
        ({"shape": [1000, 1000, 1000]}, "bytes"),
        ({"shape": [-1]}, "bytes"),
        ({"shape": "x"}, "malformed"),
        ({"__numpy__": "!!"}, "malformed"),
        ({"__numpy__": 5}, "malformed"),
        ({"shape": [float("inf")]}, "malformed"),
        ({"shape": [3.5]}, "malformed"),
    ],
)
def test_malformed_arrays_are_refused(change, message):
    content = {**json.loads(json_numpy.dumps(np.arange(3, dtype=np.uint8))), **change}
    with pytest.raises(ValueError, match=message):
        json_numpy.loads(json.dumps(content))


def test_text_that_is_no_json_is_refused():
    with pytest.raises(ValueError, match="Expecting"):
        json_numpy.loads("{nope")
    with pytest.raises(ValueError, match="nested"):
        json_numpy.loads("[" * 100_000)


def test_other_objects_are_refused_as_json_does():
    with pytest.raises(TypeError, match="set"):
        json_numpy.dumps({1})
