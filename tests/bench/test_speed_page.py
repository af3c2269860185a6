"""The pages show the run that is stored next to this file."""

from pathlib import Path

import pytest

from bench.peers import report, tables

STORED = report.read_json(Path(__file__).with_name("h200.json"))
ROOT = Path(__file__).parents[2]
SPEED = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
SECTION = " ".join(SPEED.partition("## One run")[2].partition("\n## ")[0].split())


@pytest.mark.parametrize("page", ["docs/speed.md", "docs/actions.md", "README.md"])
def test_a_table_is_the_stored_runs(page):
    table = tables.page_tables(STORED["measures"])[page]
    assert table in (ROOT / page).read_text(encoding="utf-8")


def test_readme_names_the_machine_and_the_day():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    name = STORED["machine"]["name"].split(",")[0].removeprefix("NVIDIA ")
    assert f"One {name} ({STORED['date']})" in readme


def test_it_names_the_machine_the_day_and_the_versions():
    machine = STORED["machine"]
    assert machine["name"].split(",")[0] in SECTION
    assert STORED["date"] in SECTION
    assert f"{machine['bandwidth'] / 1e12:.2f} TB/s" in SECTION
    assert f"{machine['flops'] / 1e12:.0f} TFLOP/s" in SECTION
    versions = {name.lower().replace("-", ""): text for name, text in STORED["versions"].items()}
    for name in ("MLX", "mlx-vlm", "mlx-lm", "PyTorch", "transformers", "timm"):
        key = {"PyTorch": "torch"}.get(name, name).lower().replace("-", "")
        assert f"{name} {versions[key].removesuffix('.0')}" in SECTION
