"""One source at several widths, through the command line."""

import importlib.util
import json
import shutil

import pytest
from mlx_vlm import load
from PIL import Image
from source_checkpoints import NATIVE_ARGUMENTS
from support import HF_CHECKPOINT, IMAGES

from mlx_vlm_moxin.conversion import sweep as sweep_module
from mlx_vlm_moxin.conversion.command_line import main
from mlx_vlm_moxin.conversion.sweep_plot import plot
from mlx_vlm_moxin.conversion.verify.report import FILE_NAME

pytestmark = pytest.mark.usefixtures("short_answers")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pictures")
    shutil.copy(IMAGES / "photo.png", directory)
    return directory


@pytest.fixture
def sweep(pictures, tmp_path):
    """Run ``python -m mlx_vlm_moxin convert sweep`` into one directory; returns status and rows."""
    output = tmp_path / "output"

    def run(*arguments, source=("--model", str(HF_CHECKPOINT))):
        command = ["sweep", *source, "--output", output, "--verify-images", pictures, "--quiet"]
        status = main([str(word) for word in [*command, "--group-size", 32, *arguments]])
        table = output / "sweep.json"
        return status, json.loads(table.read_text())["rows"] if table.exists() else None

    run.output = output
    return run


def test_every_width_is_converted_compared_and_drawn(sweep, capsys):
    status, rows = sweep("--bits", 3, 8)
    assert (status, capsys.readouterr().out) == (0, "")
    assert [(row["bits"], row["group_size"]) for row in rows] == [(3, 32), (8, 32)]
    three, eight = rows
    assert three["kl_mean"] > eight["kl_mean"] > 0
    assert three["size_bytes"] < eight["size_bytes"] < eight["source_size_bytes"]
    names = sorted(path.name for path in sweep.output.iterdir())
    assert names == ["3bit-g32", "8bit-g32", "sweep.json", "sweep.png"]
    with Image.open(sweep.output / "sweep.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500


def test_each_conversion_is_a_model_with_its_own_verification(sweep):
    _, rows = sweep("--bits", 8)
    directory = sweep.output / "8bit-g32"
    model, _ = load(str(directory))
    assert model.language_model.lm_head.bits == 8
    saved = json.loads((directory / FILE_NAME).read_text())
    assert {key: saved[key] for key in rows[0] if key in saved} == {
        key: value for key, value in rows[0].items() if key in saved
    }
    assert f"{saved['kl_mean']:.5f} nats" in (directory / "README.md").read_text()


@pytest.mark.slow
def test_a_native_source_is_compared_through_a_conversion_that_does_not_stay(sweep):
    status, rows = sweep("--bits", 8, source=NATIVE_ARGUMENTS)
    assert status == 0
    assert 0 < rows[0]["kl_mean"] < 1
    names = sorted(path.name for path in sweep.output.iterdir())
    assert names == ["8bit-g32", "sweep.json", "sweep.png"]


def test_a_stopped_sweep_continues(sweep, monkeypatch, capsys):
    measured = []
    original = sweep_module._measure

    def measure(args, files, asked, bits, group_size):
        measured.append(bits)
        row = original(args, files, asked, bits, group_size)
        if measured == [3, 8]:
            # The second conversion exists, but its row does not.
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(sweep_module, "_measure", measure)
    status, rows = sweep("--bits", 3, 8)
    assert (status, [row["bits"] for row in rows]) == (1, [3])
    assert "run the same command again" in capsys.readouterr().err
    assert not (sweep.output / "sweep.png").exists()
    status, rows = sweep("--bits", 3, 8)
    assert (status, [row["bits"] for row in rows]) == (0, [3, 8])
    assert measured == [3, 8, 8]


def refused(capsys, status) -> str:
    """The one-line error of a refused sweep."""
    error = capsys.readouterr().err
    assert status == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.slow
def test_another_sweeps_directory_is_refused_unless_overwritten(sweep, capsys):
    sweep("--bits", 8)
    before = (sweep.output / "sweep.json").read_bytes()
    status, _ = sweep("--bits", 8, source=NATIVE_ARGUMENTS)
    assert "belongs to another sweep" in refused(capsys, status)
    assert (sweep.output / "sweep.json").read_bytes() == before
    status, rows = sweep("--bits", 8, "--overwrite", source=NATIVE_ARGUMENTS)
    assert (status, len(rows)) == (0, 1)
    assert (sweep.output / "sweep.json").read_bytes() != before


def test_a_model_that_no_sweep_made_is_not_replaced(sweep, capsys):
    mine = sweep.output / "8bit-g32" / "config.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    status, _ = sweep("--bits", 4, 8)
    assert "8bit-g32 exists" in refused(capsys, status)
    assert [path.name for path in sweep.output.iterdir()] == ["8bit-g32"]
    assert mine.read_text() == "{}"


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": [{}], "settings": {}}'])
def test_a_damaged_table_is_named(sweep, capsys, content):
    sweep.output.mkdir()
    (sweep.output / "sweep.json").write_text(content)
    args = ["sweep", "--model", str(HF_CHECKPOINT), "--output", str(sweep.output)]
    assert "sweep.json is damaged" in refused(capsys, main(args))


def test_a_missing_matplotlib_is_found_before_anything_is_converted(sweep, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "mlx_vlm_moxin.library.plotting.find_spec",
        lambda name: None if name == "matplotlib" else find_spec(name),
    )
    status, _ = sweep("--bits", 8)
    assert "run pip install matplotlib" in refused(capsys, status)
    assert not sweep.output.exists()


def test_a_source_that_is_none_leaves_nothing_behind(sweep, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    status, _ = sweep("--bits", 8, source=["--model", tmp_path / "empty"])
    assert str(tmp_path / "empty") in refused(capsys, status)
    assert not sweep.output.exists()


def test_a_directory_without_pictures_is_found_before_anything_is_converted(
    sweep, capsys, tmp_path
):
    (tmp_path / "empty").mkdir()
    status, _ = sweep("--bits", 8, "--verify-images", tmp_path / "empty")
    assert "No pictures" in refused(capsys, status)
    assert not sweep.output.exists()


@pytest.mark.parametrize(("option", "value"), [("--bits", 7), ("--group-size", 256)])
def test_the_message_about_unsupported_settings_lists_the_supported_ones(
    sweep, capsys, option, value
):
    with pytest.raises(SystemExit) as error:
        sweep(option, value)
    assert error.value.code == 2
    assert "choose from" in capsys.readouterr().err


def test_results_are_printed_with_their_warnings(pictures, tmp_path, capsys):
    command = ["sweep", "--model", HF_CHECKPOINT, "--output", tmp_path / "output", "--bits", 2]
    options = ["--group-size", 32, "--verify-images", pictures]
    assert main([str(word) for word in [*command, *options]]) == 0
    output = capsys.readouterr().out
    assert "2 bits, group size 32: " in output
    assert "2 bits are too few" in output
    assert str(tmp_path / "output" / "sweep.png") in output


@pytest.mark.filterwarnings("error")
def test_rows_that_are_not_finite_or_zero_do_not_stop_the_picture(tmp_path):
    row = {"group_size": 64, "source_size_bytes": 10**9, "top1_agreement": 0.5}
    rows = [
        {**row, "bits": 4, "size_bytes": 10**8, "kl_mean": None},
        {**row, "bits": 8, "size_bytes": 2 * 10**8, "kl_mean": 0.0},
    ]
    for shown in (rows, rows[:1]):
        plot(shown, tmp_path / "sweep.png")
        with Image.open(tmp_path / "sweep.png") as picture:
            picture.verify()
