"""The comparison with other software: its rounds, its order, and a small run as a process."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from mlx_vlm.models.moxin.cuda import device
from support import run_module

from bench.peers import mlx_decode, questions, report, rounds
from bench.peers import models as peer_models
from bench.peers.measures import ROWS, WIDTHS, all_measures, name_of, table
from bench.peers.models import Models
from bench.peers.rounds import Measure, Result, Side, measure_rounds
from bench.peers.run import remaining
from bench.peers.sizes import SHAPES, SMALL, Sizes

TESTS = Path(__file__).parent.parent
MLX_MEASURES = ("preprocess-jpeg", "decode", "decode-batch", "second-question")
MLX_MEASURES += ("act", "act-chunk", "decode-8bit", "decode-long-4bit", "prompt")


@pytest.fixture
def log(monkeypatch):
    """Sides that record their rounds; ``fails`` and ``missing`` raise."""
    calls = []

    def prepare(side, models):
        if side.name == "missing":
            raise ModuleNotFoundError("No module named 'torch'")

        def run():
            calls.append(side.name)
            if side.name == "fails" and calls.count("fails") == 3:
                raise ValueError("out of\nmemory")
            return float(len(calls))

        return run

    monkeypatch.setattr(Side, "prepare", prepare)
    return calls


def _measure(*names: str) -> Measure:
    return Measure("m", "a measure", "ms", tuple(Side(name, "x:y") for name in names))


def test_rounds_are_interleaved_and_the_first_one_does_not_count(log):
    ticks = []
    ours, peer = measure_rounds(_measure("ours", "peer"), Models(SMALL), 2, lambda: ticks.append(0))
    assert log == ["ours", "peer"] * 3
    assert (ours.values, peer.values) == ([3.0, 5.0], [4.0, 6.0])
    assert len(ticks) == 6


def test_every_round_of_a_side_is_reported(log):
    lines = []
    measure_rounds(_measure("ours", "peer"), Models(SMALL), 1, lambda: None, lines.append)
    assert [line.split(":")[0].strip() for line in lines] == [
        "warm-up, ours",
        "warm-up, peer",
        "round 1 of 1, ours",
        "round 1 of 1, peer",
    ]


def test_a_batch_a_row_of_which_ends_early_is_an_error_and_no_endless_loop():
    class Generator:
        def __init__(self):
            self.steps = 0

        def next(self):
            self.steps += 1
            return [], [None] * (2 if self.steps <= 5 else 1)

        def close(self):
            pass

    run = mlx_decode._batch(Models(SMALL), 2, lambda rows, most: Generator())
    with pytest.raises(RuntimeError, match="1 of 2 rows ended early"):
        run()


def test_a_failing_or_missing_side_leaves_the_others_alone(log):
    names = ("ours", "fails", "missing")
    ours, fails, missing = measure_rounds(_measure(*names), Models(SMALL), 3, lambda: None)
    assert len(ours.values) == 3
    assert len(fails.values) == 1
    assert fails.error == "failed: ValueError: out of memory"
    assert missing.error == "skipped: No module named 'torch'"


def _share(name: str) -> float:
    """A model's memory, relative to one in bfloat16."""
    if name == "torch towers":
        return 0.0
    return {"8 bits": 10.3, "4 bits": 6.3}.get(name[-6:], 17.75) / 17.75


@pytest.mark.parametrize("sizes", [Sizes(), SMALL])
@pytest.mark.parametrize("names", [None, table("moxin"), table("openvla")])
def test_the_memory_of_at_most_three_large_models_is_held_at_a_time(sizes, names):
    measures = all_measures(sizes)
    assert {name for measure in measures for name in measure.needs} == set(peer_models.BUILDERS)
    by_name = {measure.name: measure for measure in measures}
    chosen = [by_name[name] for name in names or by_name]
    for _, measures in remaining([(sizes, chosen)], {}):
        built = set()
        for index, measure in enumerate(measures):
            built &= {name for later in measures[index:] for name in later.needs}
            built |= measure.needs
            assert sum(map(_share, built)) <= 3


def test_models_are_built_once_and_freed(monkeypatch):
    built = []
    monkeypatch.setattr(
        peer_models, "BUILDERS", {name: lambda sizes: built.append(sizes) or [] for name in "ab"}
    )
    models = Models(SMALL)
    assert models["a"] is models["a"]
    assert models["b"] is not models["a"]
    models.keep(["b"])
    assert models["b"] is not models["a"]
    assert built == [SMALL] * 3


@pytest.mark.parametrize(("sizes", "layers"), [(Sizes(), 36), (SMALL, 2)])
def test_moxin_is_built_in_the_sizes_of_the_run(sizes, layers, monkeypatch):
    bench_models = peer_models.bench_models
    monkeypatch.setattr(bench_models, "random_model", lambda *_: bench_models.real_config())
    assert peer_models.ours(sizes).text_config.num_hidden_layers == layers


@pytest.mark.slow
def test_a_small_run_gives_a_value_for_every_side_of_mlx(tmp_path):
    file = tmp_path / "peers.json"
    options = ["--small", "--rounds", "1", "--json", file, "--only", *MLX_MEASURES]
    result = run_module("bench.peers", *options, cwd=TESTS)
    assert result.returncode == 0, result.stderr
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert list(saved["measures"]) == list(MLX_MEASURES)
    for measure in saved["measures"].values():
        assert measure["title"] in result.stdout
        for side in measure["sides"]:
            if side["error"] is not None:
                assert side["error"].startswith("skipped: No module named"), side
                assert not side["side"].startswith(("ours", "mlx-lm"))
            else:
                assert side["median"] > 0


def test_no_token_ends_a_row_of_a_batch():
    """mlx-vlm's criteria stop at the tokenizer's end token, whatever list they receive."""
    processor = questions.processor(Models(SMALL))
    end = processor.tokenizer.eos_token_id
    assert end is not None
    criteria = processor.tokenizer.stopping_criteria
    assert not criteria(end)
    criteria.reset([end])
    assert not criteria(end)


def test_a_batch_that_never_fills_is_an_error_and_no_endless_loop():
    class Generator:
        def next(self):
            return [], []

        def close(self):
            pass

    run = mlx_decode._batch(Models(SMALL), 2, lambda rows, most: Generator())
    with pytest.raises(RuntimeError, match="2 of 2 rows ended early"):
        run()


def test_a_side_whose_round_is_too_long_is_left_out(monkeypatch):
    def prepare(side, models):
        def run():
            while side.name == "endless":
                pass
            return 1.0

        return run

    monkeypatch.setattr(Side, "prepare", prepare)
    monkeypatch.setattr(rounds, "ROUND_LIMIT", 0.05)
    endless, peer = measure_rounds(_measure("endless", "peer"), Models(SMALL), 1, lambda: None)
    assert endless.error.startswith("failed: TimeoutError: stopped after")
    assert peer.values == [1.0]


def test_a_library_that_catches_the_time_limit_is_stopped_all_the_same():
    caught = []

    def library():
        for _ in range(2):
            try:
                while True:
                    pass
            except TimeoutError as error:
                caught.append(error)
        raise caught[-1]

    def limited():
        with rounds.time_limit(0.05):
            library()

    with pytest.raises(TimeoutError):
        limited()
    assert len(caught) == 2


def test_a_side_without_kernels_runs_with_the_switch_off(monkeypatch):
    monkeypatch.delenv(rounds.KERNELS_SWITCH, raising=False)
    seen = []
    module = ModuleType("bench.peers.made_up")
    module.entry = lambda models: lambda: seen.append(os.environ.get(rounds.KERNELS_SWITCH)) or 1.0
    monkeypatch.setitem(sys.modules, "bench.peers.made_up", module)
    sides = Side("ours", "made_up:entry"), Side("off", "made_up:entry", kernels=False)
    measure_rounds(Measure("m", "a measure", "ms", sides), Models(SMALL), 1, lambda: None)
    assert seen == [None, "0"] * 2
    assert rounds.KERNELS_SWITCH not in os.environ
    assert rounds.KERNELS_SWITCH == device.SWITCH


def test_a_run_goes_on_after_what_is_complete(tmp_path):
    file = tmp_path / "peers.json"
    options = ["--small", "--rounds", "1", "--json", file, "--resume"]
    only = ["--only", "preprocess-jpeg"]
    assert run_module("bench.peers", *options, *only, cwd=TESTS).returncode == 0
    saved = json.loads(file.read_text(encoding="utf-8"))
    jpeg = saved["measures"]["preprocess-jpeg"]
    unfinished = [{**side, "values": [1.0], "complete": False} for side in jpeg["sides"]]
    saved["measures"]["preprocess-image"] = {**jpeg, "sides": unfinished}
    jpeg["sides"][0]["values"] = [5.0]
    del jpeg["sides"][-1]
    file.write_text(json.dumps(saved), encoding="utf-8")
    result = run_module("bench.peers", *options, *only, "preprocess-image", cwd=TESTS)
    assert result.returncode == 0, result.stderr
    measures = json.loads(file.read_text(encoding="utf-8"))["measures"]
    first, *_, last = measures["preprocess-jpeg"]["sides"]
    assert (first["side"], first["values"]) == ("ours", [5.0])
    assert last["side"] == "decoding alone"
    assert last["values"]
    assert "already decoded" in measures["preprocess-image"]["title"]
    assert all(side["complete"] for side in measures["preprocess-image"]["sides"])


def test_a_run_ends_at_its_deadline_and_what_that_stops_is_not_complete(log, monkeypatch):
    monkeypatch.setattr(rounds.time, "monotonic", lambda: float(len(log)))
    measure = _measure("ours", "peer")
    ours, peer = measure_rounds(measure, Models(SMALL), 2, lambda: None, deadline=5.0)
    assert log == ["ours", "peer"] * 2 + ["ours"]
    assert (ours.complete, peer.complete) == (True, False)
    assert (ours.values, peer.values) == ([3.0, 5.0], [4.0])
    assert peer.error is None


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rows_of_the_table_exist_and_sides_with_a_compiler_come_last(shape):
    sizes = replace(SMALL, shape=shape)
    measures = {measure.name: measure for measure in all_measures(sizes)}
    names = table(shape)
    assert set(names) == {
        name_of(name, width)
        for name in ROWS[shape]
        for width in (WIDTHS if name != "towers" else WIDTHS[:1])
    }
    rows = [measures[name] for name in names]
    (_, first), (_, last) = remaining([(sizes, rows)], {})
    assert [measure.name for measure in first] == list(names)
    assert not any(side.compiled for measure in first for side in measure.sides)
    assert last
    assert all(side.compiled for measure in last for side in measure.sides)
    sides = [side for measure in rows for side in measure.sides]
    assert len(sides) == sum(len(measure.sides) for measure in [*first, *last])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_row_has_our_side_and_mlxs_kernels_and_in_bfloat16_pytorch(shape):
    measures = {measure.name: measure for measure in all_measures(Sizes(shape=shape))}
    for name in table(shape):
        names = [side.name for side in measures[name].sides]
        assert any(side.startswith("ours") for side in names)
        assert "the same model, MLX's kernels" in names
        assert any(side.startswith("PyTorch") for side in names) == ("bit" not in name)
        assert any(side.startswith("mlx-lm") for side in names) == name.startswith(
            ("short-prompt", "prompt", "decode")
        )


def test_what_is_left_are_the_sides_that_are_not_complete():
    measure = _measure("ours", "peer, a", "peer, b")
    done = {"m": report.to_dict(_measure(), [Result("ours", True, [1.0], complete=True)], None)}
    (_, left), _ = remaining([(SMALL, [measure])], done)
    assert [side.name for side in left[0].sides] == ["peer, a", "peer, b"]
    (_, left), _ = remaining([(SMALL, [measure])], done, ["b", "ours"])
    assert [side.name for side in left[0].sides] == ["peer, b"]
    done["m"] = report.to_dict(
        _measure(), [Result(side.name, False) for side in measure.sides], None
    )
    assert [left for _, left in remaining([(SMALL, [measure])], done)] == [[], []]


def test_a_run_with_fewer_layers_has_the_same_widths():
    config = Sizes(layers=2).config
    assert config.text_config.num_hidden_layers == 2
    assert replace(config.text_config, num_hidden_layers=36) == Sizes().config.text_config


def test_an_unknown_measure_is_refused():
    result = run_module("bench.peers", "--only", "speed", cwd=TESTS)
    assert result.returncode == 2
    assert "unknown: speed" in result.stderr
