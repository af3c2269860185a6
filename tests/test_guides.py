"""The code, names and options of the two guides exist and work."""

import re
from pathlib import Path

import mlx.core as mx
import mlx_vlm
import numpy as np
import pytest
from mlx_vlm.models.cache import make_prompt_cache
from mlx_vlm.sample_utils import make_sampler
from support import GOLDENS, HF_CHECKPOINT, image_path, run_module

import mlx_vlm_moxin

DOCS = Path(__file__).parents[1] / "docs"
COMING = (DOCS / "coming-from-ominix.md").read_text(encoding="utf-8")
GUIDE = (DOCS / "quantisation.md").read_text(encoding="utf-8")
NAMES = {
    "moxin-org/Moxin-7B-VLM-8bit-mlx": str(HF_CHECKPOINT),
    "bobchenyx/Moxin-7B-VLM-hf": str(HF_CHECKPOINT),
    "photo.jpg": image_path("photo"),
    "range(100)": "range(8)",
    "max_tokens=100": "max_tokens=8",
}


def python_blocks(text: str) -> list[str]:
    """Python code of a guide, about the reference checkpoint."""
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for name, ours in NAMES.items():
        blocks = [block.replace(name, ours) for block in blocks]
    return blocks


def test_the_code_for_ominix_users_prints_the_same_answer_twice(capsys):
    namespace = {}
    short, by_hand = python_blocks(COMING)
    exec(short, namespace)
    answer = capsys.readouterr().out.rstrip("\n")
    exec(by_hand, namespace)
    pieces = capsys.readouterr().out
    tokens = GOLDENS["generate"]["hf"]["photo"][0]["tokens"][:3]
    processor = namespace["processor"]
    assert answer.startswith(processor.decode(tokens))
    assert pieces.startswith(" ".join(processor.decode([token]) for token in tokens))


def test_the_code_on_quantising_saves_what_mlx_vlm_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = [code for code in python_blocks(GUIDE) if "mlx_vlm_moxin" in code]
    exec(block, {})
    model, _ = mlx_vlm.load("moxin-saved")
    assert model.language_model.lm_head.bits == 8


@pytest.mark.parametrize("name", [n for n in mlx_vlm_moxin.__all__ if n != "register"])
def test_every_function_of_the_library_is_on_the_mapping_page(name):
    assert f"`{name}(" in COMING or f"`{name}`" in COMING


@pytest.mark.parametrize("name", mlx_vlm_moxin.__all__)
def test_every_public_name_is_in_the_api_reference(name):
    value = getattr(mlx_vlm_moxin, name)
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    (members,) = re.findall(r"::: mlx_vlm_moxin\.library\.images\n.*\n +members: \[(.*)\]", page)
    listed = {*re.findall(r"^::: (\S+)$", page, re.MULTILINE)}
    listed |= {f"mlx_vlm_moxin.library.images.{member}" for member in members.split(", ")}
    assert f"{value.__module__}.{name}" in listed


def test_the_models_parts_have_the_names_on_the_mapping_page(model):
    paths = re.findall(r"`(model(?:\.\w+)+)`", COMING)
    assert len(paths) > 5
    for path in paths:
        part = model
        for name in path.split(".")[1:]:
            part = getattr(part, name)
    assert callable(make_prompt_cache)
    assert callable(make_sampler(0.5))


@pytest.mark.parametrize("program", ["generate", "server", "convert"])
def test_the_options_on_the_mapping_page_exist(program):
    rows = re.findall(r"^\| (?:`(\w+)`)? *\|[^|]*\| ([^|]*) \|$", COMING, re.MULTILINE)
    command, options = None, set()
    for name, cell in rows:
        command = name or command
        if {"save_quantized": "convert"}.get(command, command) == program:
            options |= set(re.findall(r"(?<!\w)--?[a-z][\w-]*", cell))
    assert len(options) >= 3
    shown = run_module("mlx_vlm_moxin", program, "--help").stdout
    assert [option for option in options if option not in shown] == []


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_weights_are_packed_as_the_guide_says(bits):
    weight = mx.random.normal((4, 64), key=mx.random.key(0)).astype(mx.bfloat16)
    packed, scales, biases = mx.quantize(weight, group_size=32, bits=bits)
    assert packed.shape == (4, 64 * bits // 32)
    assert scales.shape == biases.shape == (4, 64 // 32)
    stream = np.unpackbits(np.array(packed).view(np.uint8), axis=-1, bitorder="little")
    integers = stream.reshape(4, 64, bits) @ (1 << np.arange(bits))
    s, b = (np.repeat(np.array(part.astype(mx.float32)), 32, axis=1) for part in (scales, biases))
    unpacked = mx.dequantize(packed, scales, biases, group_size=32, bits=bits)
    np.testing.assert_allclose(
        s * integers + b, np.array(unpacked.astype(mx.float32)), rtol=0, atol=0.03
    )


def test_docstrings_use_markdown_since_the_api_reference_shows_sphinx_roles_raw():
    role = re.compile(r":(?:func|class|meth|mod|attr|data|exc|ref):`")
    sources = (DOCS.parent / "mlx_vlm_moxin").rglob("*.py")
    assert [str(path) for path in sources if role.search(path.read_text(encoding="utf-8"))] == []
