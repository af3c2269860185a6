"""JSON schemas are enforced on every backend of MLX, and only for the request that has one."""

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
from bodies import CHAT, RESPONSES, answer_text, body, picture_data
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MESSAGES

from mlx_vlm_moxin.plugin.structured_output import apply_llguidance_mask

SCHEMA = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["dog", "cat"]},
        "on_the_left": {"type": "boolean"},
        "legs": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["animal", "on_the_left", "legs"],
    "additionalProperties": False,
}


@given(data=st.data())
@settings(max_examples=50)
def test_a_mask_forbids_the_tokens_without_a_bit_and_those_after_it(data):
    words = data.draw(st.integers(1, 3))
    width = data.draw(st.integers(1, 32 * words + 40))
    rows = data.draw(st.integers(1, 3))
    numbers = st.integers(-(2**31), 2**31 - 1)
    mask = [data.draw(st.lists(numbers, min_size=words, max_size=words)) for _ in range(rows)]
    logits = mx.arange(rows * width, dtype=mx.bfloat16).reshape(rows, width)
    masked = apply_llguidance_mask(logits, mx.array(mask, dtype=mx.int32))
    assert masked.dtype == logits.dtype
    bits = np.unpackbits(np.array(mask, "<i4").view(np.uint8), axis=1, bitorder="little")
    allowed = np.zeros((rows, width), bool)
    allowed[:, : bits.shape[1]] = bits[:, :width]
    expected = np.where(allowed, np.array(logits.astype(mx.float32)), -np.inf)
    np.testing.assert_array_equal(np.array(masked.astype(mx.float32)), expected)


@pytest.mark.xfail(
    not mx.metal.is_available(), raises=RuntimeError, strict=True, reason="mlx-vlm needs Metal"
)
def test_mlx_vlms_own_kernel_masks_alike():
    spec = importlib.util.find_spec("mlx_vlm.structured")
    original = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(original)
    logits = mx.random.normal((2, 100), key=mx.random.key(0))
    mask = mx.random.randint(-(2**31), 2**31 - 1, (2, 3), key=mx.random.key(1))
    masked = original._apply_llguidance_mask(logits, mask)
    assert mx.array_equal(masked, apply_llguidance_mask(logits, mask))


def json_schema(endpoint: str) -> dict:
    """The request parameter for ``SCHEMA``."""
    if endpoint == RESPONSES:
        return {"text": {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}}}
    wrapped = {"name": "answer", "schema": SCHEMA}
    return {"response_format": {"type": "json_schema", "json_schema": wrapped}}


def request(endpoint: str, model: str, name: str = "photo", **parameters) -> tuple[str, dict]:
    picture = picture_data(name)
    return endpoint, body(endpoint, model, MESSAGES[0], picture, max_tokens=80, **parameters)


def assert_follows_the_schema(text: str) -> None:
    answer = json.loads(text)
    assert set(answer) == set(SCHEMA["required"])
    assert answer["animal"] in ("dog", "cat")
    assert isinstance(answer["on_the_left"], bool)
    assert answer["legs"] in range(10)


def test_answers_follow_a_schema_while_other_answers_have_none(server):
    plain = request(CHAT, server.model)
    alone = answer_text(CHAT, server.post(*plain)[1])
    settings = ({}, {"temperature": 1, "seed": 1}, {"temperature": 1, "seed": 2})
    structured = [
        request(endpoint, server.model, **json_schema(endpoint), **parameters)
        for endpoint in (CHAT, RESPONSES)
        for parameters in settings
    ]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda r: server.post(*r), [*structured, plain, plain]))
    assert [status for status, _ in answers] == [200] * 8
    texts = [
        answer_text(endpoint, answer)
        for (endpoint, _), (_, answer) in zip([*structured, plain, plain], answers)
    ]
    for text in texts[:6]:
        assert_follows_the_schema(text)
    assert texts[6:] == [alone] * 2


def test_a_format_that_is_unknown_is_refused(server):
    endpoint, bad = request(CHAT, server.model, response_format={"type": "xml"})
    status, answer = server.post(endpoint, bad)
    assert status == 400
    assert "xml" in answer["error"]["message"]
