"""The notebook's cells run in order, without Jupyter, and give the results in its text."""

import json
from pathlib import Path

import matplotlib
import mlx_vlm
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "notebooks/ask_convert_compare.ipynb").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The variables after running the cells, and the folder that they ran in."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "notebooks").mkdir()
    (folder / "tests").symlink_to(ROOT / "tests")
    matplotlib.use("Agg")
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "notebooks")
        for cell in NOTEBOOK["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    return names, folder / "notebooks"


def test_it_is_a_notebook_without_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len({*ids}) == len(ids)
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in code] == [[]] * len(code)
    assert {cell["execution_count"] for cell in code} == {None}


@pytest.mark.slow
def test_every_width_answers_right(run):
    names, folder = run
    for model in names["models"].values():
        assert names["ask"](model, "What colour is the circle?", folder / names["PICTURE"]) == "red"


@pytest.mark.slow
def test_fewer_bits_are_smaller_and_further_away(run):
    names, folder = run
    sizes, divergences = names["sizes"], names["divergences"]
    assert sizes["bf16"] > sizes["8 bits"] > sizes["4 bits"]
    written = (folder / "converted" / "moxin-4bit" / "model.safetensors").stat().st_size
    assert sizes["4 bits"] == pytest.approx(written / 1e6, rel=0.02)
    assert divergences["bf16"] == 0 < divergences["8 bits"] < divergences["4 bits"]


@pytest.mark.slow
def test_what_it_writes_is_a_plot_and_models_of_stock_mlx_vlm(run):
    _, folder = run
    assert Image.open(folder / "converted" / "widths.png").size == (900, 350)
    for bits in (8, 4):
        model, _ = mlx_vlm.load(str(folder / "converted" / f"moxin-{bits}bit"))
        assert model.language_model.lm_head.bits == bits


@pytest.mark.slow
def test_another_picture_gets_its_own_answer(run):
    names, _ = run
    answer = names["ask"](names["models"]["8 bits"], "What colour is the square?", names["picture"])
    assert answer == "blue"
