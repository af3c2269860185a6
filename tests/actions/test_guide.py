"""The presets, options and code in docs/actions.md exist."""

import json
import re
from pathlib import Path

from bench.peers.__main__ import parser as bench_parser
from support import run_module

from mlx_vlm_moxin.actions.training import ACTION, INSTRUCTION, is_action_data
from mlx_vlm_moxin.checkpoints.action_options import PRESETS

GUIDE = (Path(__file__).parents[2] / "docs" / "actions.md").read_text(encoding="utf-8")


def test_the_presets_of_the_table_are_the_codes():
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (.*) \|$", GUIDE, re.M)
    names = ("chunk_size", "action_dim", "proprio_dim", "num_images")
    scaled = {"bounds_q99": "1st and 99th percentiles", "bounds": "extremes"}
    assert {
        name: {**dict(zip(names, map(int, values))), "normalization": by}
        for name, *values, by in rows
    } == {
        name: {**preset, "normalization": scaled[preset["normalization"]]}
        for name, preset in PRESETS.items()
    }


def test_the_options_that_are_named_exist():
    shown = "".join(run_module("mlx_vlm_moxin", c, "--help").stdout for c in ("act", "convert"))
    shown += run_module("mlx_vlm_moxin", "server", "--help").stdout
    shown += run_module("mlx_vlm_moxin", "fuse", "--help").stdout
    shown += run_module("mlx_vlm.train", "--help").stdout
    shown += bench_parser().format_help()
    options = {*re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", GUIDE)}
    assert len(options) > 15
    assert sorted(option for option in options if option not in shown) == []


def test_the_example_row_of_data_can_be_read():
    (row,) = map(json.loads, re.findall(r"```json\n(.*?)\n```", GUIDE, re.S))
    assert is_action_data([row])
    assert [*row] == ["image", INSTRUCTION, ACTION]


def test_the_packages_of_the_client_and_the_library_code_are_valid_python():
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "docs/actions.md", "exec")
