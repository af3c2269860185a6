"""The list of supported models is complete and has their real sizes."""

import json
import math
import sys

import pytest
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin.prompts import PROMPT_FORMATS
from support import HF_CHECKPOINT

from mlx_vlm_moxin.checkpoints.prismatic_models import PRISMATIC_MODELS
from mlx_vlm_moxin.checkpoints.published import MOXIN_7B
from mlx_vlm_moxin.checkpoints.sources.saved import read_config
from mlx_vlm_moxin.checkpoints.tensors import read_checkpoint
from mlx_vlm_moxin.library import models, sizes


@pytest.fixture(scope="module")
def rows():
    return {row.id: row for row in models.rows()}


def test_all_49_published_models_but_the_one_with_phi_are_listed(rows):
    prismatic = {name for name, row in rows.items() if row.source.startswith("TRI-ML/")}
    assert len(PRISMATIC_MODELS) == 49 + 1  # Moxin's
    assert {*PRISMATIC_MODELS} - prismatic == {"phi-2+3b", "prism-moxin-dinosiglip-224px+7b"}
    assert {row.prompt for row in rows.values()} == {*PROMPT_FORMATS}


def test_moxins_configuration_and_sizes_are_those_of_the_guide(rows):
    config = models.config_of(PRISMATIC_MODELS["prism-moxin-dinosiglip-224px+7b"])
    for part in ("text_config", "vision_config", "projector_config"):
        assert getattr(config, part) == getattr(MOXIN_7B, part)
    row = rows["Moxin-7B-VLM"]
    for bits, size in row.memory.items():
        exact = sizes.part_bytes(bits=None if bits == 16 else bits)
        assert size == sum(exact.values())
    # As published: 32.7 GB without towers.
    assert round(row.download / 1e9, 1) == 32.7


def test_the_download_of_an_hf_converted_checkpoint_includes_the_unused_parts_of_towers():
    tensors = read_checkpoint(HF_CHECKPOINT)
    config = read_config(HF_CHECKPOINT, tensors)
    model = sizes.build_uncomputed(config)
    used = sum(value.size for _, value in tree_flatten(model.parameters()))
    stored = sum(math.prod(tensor.shape) for tensor in tensors.values())
    assert used + models.count_unused(config.vision_config) == stored


def test_sizes_are_those_of_the_published_files(rows):
    # Three shards of 6.95, 6.97 and 1.16 GB; 13.5 GB without towers.
    assert rows["openvla-7b"].download == pytest.approx(15.08e9, rel=0.001)
    assert rows["prism-dinosiglip-224px+7b"].download == pytest.approx(13.5e9, rel=0.01)


def test_rows_say_what_the_model_is(rows):
    row = rows["dinoclip-336px-letterbox+7b"]
    assert (row.towers, row.pixels, row.prompt) == ("DINOv2 + CLIP", 336, "vicuna")
    assert rows["prism-siglip+13b"].pixels == 384
    assert rows["prism-siglip+13b"].decoder == "Llama 2 13B"


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_the_command_prints_every_model(arguments, rows, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["models", *arguments])
    assert models.main() == 0
    output = capsys.readouterr().out
    if arguments:
        assert [row["id"] for row in json.loads(output)] == [*rows]
    assert all(name in output for name in rows)
