"""The comparison with other software: its results as text, tables and JSON."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support import run_module

from bench.peers import report, tables
from bench.peers.measures import ROWS, all_measures, table
from bench.peers.rounds import Measure, Result, Side
from bench.peers.sizes import SHAPES, Sizes
from mlx_vlm_moxin.bench.machine import Machine

TESTS = Path(__file__).parent.parent


def _measure(*names: str) -> Measure:
    return Measure("m", "a measure", "ms", tuple(Side(name, "x:y") for name in names))


def stored(unit: str, limit: float | None, *results: Result) -> dict:
    """A measure as in a file."""
    measure = replace(_measure(), unit=unit)
    return report.to_dict(measure, list(results), limit)


def test_ratios_are_our_medians_over_a_peers():
    results = [Result("ours, a", True, [30.0, 10.0, 20.0]), Result("ours, b", True, [8.0])]
    results += [Result("ours, c", True, error="failed"), Result("peer", False, [10.0])]
    assert report.ratios(results, results[-1]) == [2.0, 0.8]
    text = report.text(_measure("ours, a"), results, limit=40.0)
    assert "20.00 (10.00 to 30.00), 50% of the limit" in text
    assert "ours are 2.00 and 0.80 of it" in text
    assert "failed" in text
    assert report.to_dict(_measure(), results, None)["sides"][-1]["ours_over_it"] == [2.0, 0.8]


def test_the_table_has_the_fastest_side_of_each_column_first():
    row = stored(
        "tokens/s",
        3000.0,
        Result("ours, a", True, [200.0]),
        Result("ours, b", True, [1500.0]),
        Result("the same model, MLX's kernels", False, [1000.0]),
        Result("mlx-lm, c", False, [750.0]),
        Result("mlx-lm, d, 16 tokens a round", False, [100.0]),
        Result("PyTorch, eager, e", False, error="failed"),
        Result("PyTorch, static cache, compiled", False, [1600.0]),
    )
    head, _, *rows = tables.markdown({"towers": row}).splitlines()
    assert head == "| | here | MLX's kernels | mlx-lm | PyTorch, compiled | PyTorch, eager |"
    assert rows == [
        "| a measure, tokens/s | 1,500 (50% of the limit) | 1,000 (1.5x) | 750 (2.0x)"
        " | 1,600 (0.94x) | |",
        "| | 200 (a) | | 100\\* (d) | | |",
    ]


def test_the_table_shows_extremes_that_are_far_apart():
    results = Result("ours", True, [2.0, 2.1]), Result("mlx-lm", False, [40.0, 80.0, 50.0])
    table = tables.markdown({"act": stored("ms", None, *results)})
    assert table.splitlines()[2:] == ["| a measure, ms | 2.05 | | 50 (40 to 80; 24x) | | |"]


def test_the_table_has_the_widths_of_a_row_next_to_each_other():
    names = [name for shape in SHAPES for name in table(shape)]
    measures = {name: stored("ms", None, Result("ours", True, [1.0])) for name in names}
    measures = {name: {**measure, "title": name} for name, measure in measures.items()}
    shown = [row.split(",")[0][2:] for row in tables.markdown(measures).splitlines()[2:]]
    assert sorted(shown) == sorted(names)
    assert shown[:4] == ["towers", "first-token", "first-token-8bit", "first-token-4bit"]


def test_readmes_table_compares_with_the_fastest_other_side():
    ours = Result("ours, a", True, [10.0])
    others = Result("mlx-lm", False, [25.0]), Result("PyTorch", False, [20.0])
    measures = {"act": stored("ms", None, ours, *others), "act-4bit": stored("ms", None, ours)}
    head, _, *rows = tables.readme(measures).splitlines()
    assert head == "| | in bf16 | 8-bit | 4-bit |"
    assert rows[-1] == "| robot's action, ms | 10 (2.0x) | | 10 |"
    units = {
        measure.name: measure.unit
        for shape in SHAPES
        for measure in all_measures(Sizes(shape=shape))
    }
    for title, name in tables.README_ROWS:
        assert name in ROWS["moxin"] + ROWS["openvla"]
        assert title.endswith(f", {units[name]}")


def test_the_table_of_actions_has_pytorch_in_bfloat16_beside_ours():
    pytorch = Result("PyTorch, eager", False, [9.0, 10.0])
    ours = Result("ours", True, [2.0])
    measures = {"act": stored("ms", None, ours, pytorch), "act-8bit": stored("ms", None, ours)}
    head, _, row, *_ = tables.actions(measures).splitlines()
    assert head == "| | bf16 | 8 bits | 4 bits | PyTorch, eager | PyTorch, compiled |"
    assert row == "| one action, seven tokens | 2 | 2 | | 9.5 (9 to 10) | |"


def test_the_table_of_a_stored_run_is_printed(tmp_path):
    row = stored("ms", None, Result("ours", True, [7.0]))
    file = tmp_path / "peers.json"
    file.write_text(json.dumps({"measures": {"act": row}, "machine": {"name": "a"}}))
    result = run_module("bench.peers", "--markdown", file, cwd=TESTS)
    assert result.returncode == 0, result.stderr
    for page, text in tables.page_tables({"act": row}).items():
        assert f"{page}:\n{text}\n" in result.stdout


def test_a_file_that_is_no_run_or_of_another_one_is_an_error_in_one_line(tmp_path):
    file, machine = tmp_path / "peers.json", Machine("a GPU", 1.0, 1.0)
    measures = {"act": stored("ms", None, Result("ours", True, [1.0], complete=True))}
    assert report.complete(file, machine, small=True) == ({}, machine)
    report.save_json(file, machine, True, measures)
    assert report.complete(file, machine, small=True) == (measures, machine)
    for other, small in ((machine, False), (Machine("another", 1.0, 1.0), True)):
        with pytest.raises(ValueError, match="of another machine or of other sizes"):
            report.complete(file, other, small)
    texts = ["", "[]", '{"measures": {}}', '{"measures": {"a": {"sides": [{}]}}, "machine": {}}']
    for text in texts:
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="is not a file of --json"):
            report.complete(file, machine, small=True)
    with pytest.raises(ValueError, match=r"cannot read .*: No such file"):
        report.read_json(tmp_path / "none.json")


def test_a_resumed_run_keeps_the_limits_to_which_it_was_compared(tmp_path):
    file, machine = tmp_path / "peers.json", Machine("a GPU", 3.75e12, 6.8e14)
    report.save_json(file, machine, True, {})
    again = Machine("a GPU", 3.90e12, 6.7e14)
    assert report.complete(file, again, small=True) == ({}, machine)


def test_a_run_that_ends_while_it_saves_leaves_the_earlier_file(tmp_path, monkeypatch):
    file, machine = tmp_path / "peers.json", Machine("a GPU", 1.0, 1.0)
    report.save_json(file, machine, True, {})
    earlier = file.read_bytes()

    def end(path: Path, text: str, **_: str) -> None:
        path.write_bytes(text[:9].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", end)
    with pytest.raises(KeyboardInterrupt):
        report.save_json(file, machine, True, {"act": stored("ms", None)})
    assert file.read_bytes() == earlier
