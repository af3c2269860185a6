"""A randomly changed checkpoint either loads or is refused in one line by this package.

Each test draws the same examples in every run. A hang or a crash ends the test run.
"""

import copy
import json
import os
import shutil
import tempfile
import traceback
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx_vlm
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from source_checkpoints import copy_checkpoint
from support import HF_CHECKPOINT
from torch_files import pickled, tensor, write_pt

from mlx_vlm_moxin.checkpoints.messages import MAX_MESSAGE
from mlx_vlm_moxin.checkpoints.pt_file import read_pt
from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.checkpoints.skeleton import build_skeleton
from mlx_vlm_moxin.checkpoints.sources import open_source

NASTY = st.sampled_from(
    [None, True, False, -1, 0, 1, 2, 3, 7, 10**9, 2**31, 10**30, -0.5, 0.5, 1e300, float("nan")]
    + [float("inf"), "", "a", "x" * 5000, "\n\x00", "../../etc/passwd", [], {}, [[]], [1, 2, 3]]
    + [[None], ["a"], {"a": 1}, {"type": "linear"}, [[1.5] * 3] * 2]
)
SETTINGS = ("config.json", "preprocessor_config.json", "generation_config.json")
SETTINGS += ("tokenizer_config.json", "special_tokens_map.json", "model.safetensors.index.json")


def examples(count: int):
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        # A failing example is shown as it was drawn, because shrinking it takes minutes.
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@contextmanager
def refusal_is_one_line() -> Iterator[None]:
    """Suppresses an error about the input after checking that it is one bounded line."""
    try:
        yield
    except (ValueError, OSError) as error:
        message = str(error)
    else:
        return
    assert message.isprintable(), repr(message)
    assert 0 < len(message) <= MAX_MESSAGE


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path_factory.mktemp("fuzz") / "x")
    for name in ("special_tokens_map.json",):
        if not (directory / name).exists():
            (directory / name).write_text('{"pad_token": "<PAD>"}')
    return directory


@contextmanager
def linked_copy(original: Path) -> Iterator[Path]:
    """A copy with hard links to the files that do not change."""
    with tempfile.TemporaryDirectory(dir=original.parent) as place:
        directory = Path(place) / "model"
        shutil.copytree(original, directory, copy_function=os.link)
        yield directory


def replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def paths(value, path=()) -> list[tuple]:
    """The path of keys to every value in nested containers."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in items:
        found.append((*path, key))
        if isinstance(inner, (dict, list)):
            found += paths(inner, (*path, key))
    return found


def mutated(data: st.DataObject, content):
    """``content`` with one to three values replaced, removed or added, in place."""
    for _ in range(data.draw(st.integers(1, 3))):
        places = paths(content)
        if not places:
            break
        *way, last = data.draw(st.sampled_from(places))
        owner = content
        for key in way:
            owner = owner[key]
        action = data.draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "remove":
            del owner[last]
        elif action == "add" and isinstance(owner, dict):
            name = data.draw(st.sampled_from(["rope_scaling", "quantization", "x" * 300]))
            owner[name] = copy.deepcopy(data.draw(NASTY))
        else:
            owner[last] = copy.deepcopy(data.draw(NASTY))
    return content


@pytest.mark.parametrize("name", SETTINGS)
@examples(40)
@given(data=st.data())
def test_random_settings_load_or_are_refused(original, name, data):
    content = mutated(data, json.loads((original / name).read_text()))
    with linked_copy(original) as directory:
        replace(directory / name, json.dumps(content).encode())
        with refusal_is_one_line():
            build_skeleton(open_source(str(directory)), QuantizeOptions())


@examples(60)
@given(data=st.data())
def test_random_settings_in_stock_mlx_vlm_load_or_are_refused(original, data):
    name = data.draw(st.sampled_from(SETTINGS[:3]))
    content = mutated(data, json.loads((original / name).read_text()))
    with linked_copy(original) as directory:
        replace(directory / name, json.dumps(content).encode())
        try:
            mlx_vlm.load(str(directory), lazy=True)
        except (ValueError, OSError):
            return
        except Exception as error:
            # mlx-vlm reads some settings before the model's code does.
            if "mlx_vlm_moxin" in traceback.extract_tb(error.__traceback__)[-1].filename:
                raise


@examples(40)
@given(position=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 3))
def test_random_bytes_in_a_safetensors_header_load_or_are_refused(original, position, byte, cut):
    shard = "model-00001-of-00003.safetensors"
    content = bytearray((original / shard).read_bytes())
    content[position : position + cut] = bytes([byte])
    with linked_copy(original) as directory:
        replace(directory / shard, bytes(content))
        with refusal_is_one_line():
            open_source(str(directory))


@examples(60)
@given(data=st.data())
def test_random_entries_of_a_safetensors_header_load_or_are_refused(original, data):
    shard = "model-00003-of-00003.safetensors"
    content = (original / shard).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(mutated(data, json.loads(content[8 : 8 + size]))).encode()
    with linked_copy(original) as directory:
        body = content[8 + size :]
        replace(directory / shard, len(header).to_bytes(8, "little") + header + body)
        with refusal_is_one_line():
            build_skeleton(open_source(str(directory)), QuantizeOptions())


PICKLE = pickled(
    {"model": {"a": tensor(np.ones((2, 3), np.float32)), "b": [1, 2.5, None, ("x", True)]}}
)[0]
OPCODES = b"".join([b"}]()tauRQb.qrhjKMJX\x85\x86\x87\x88\x89\x8a\x94cN0125"])


@examples(300)
@given(
    edits=st.lists(
        st.tuples(
            st.integers(2, len(PICKLE) - 1),
            st.integers(0, 4),
            st.one_of(
                st.binary(max_size=4),
                st.lists(st.sampled_from(OPCODES), max_size=8).map(bytes),
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_random_bytes_in_a_pickle_load_or_are_refused(tmp_path, edits):
    data = bytearray(PICKLE)
    for position, removed, added in edits:
        data[position : position + removed] = added
    path = write_pt(tmp_path / "file.pt", None, data=bytes(data))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(24))
    with refusal_is_one_line():
        read_pt(path)


@examples(60)
@given(position=st.integers(0, 1000), byte=st.integers(0, 255))
def test_random_bytes_in_an_archive_load_or_are_refused(tmp_path, position, byte):
    path = write_pt(tmp_path / "file.pt", {"a": tensor(np.ones((2, 3), np.float32))})
    content = bytearray(path.read_bytes())
    content[position % len(content)] = byte
    path.write_bytes(content)
    with refusal_is_one_line():
        read_pt(path)
