"""The benchmark: its arithmetic, its models, and a run as a process."""

import gc
import json

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from support import HF_CHECKPOINT, run_module

from mlx_vlm_moxin.bench import __main__ as bench_command
from mlx_vlm_moxin.bench import models, report
from mlx_vlm_moxin.bench.machine import Machine, probe, seconds
from mlx_vlm_moxin.bench.measure import Figure, Plan, _flops, measure

TOWER = {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 128}
TEXT = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 576,
}


@pytest.fixture
def small_config(monkeypatch):
    """Random models in small sizes."""
    from mlx_vlm.models.moxin import ModelConfig

    vision = {"image_size": 28, "dino": {**TOWER, "class_token": True}, "siglip": TOWER}
    projector = {"input_size": 128, "intermediate_size": 256, "output_size": 128}
    config = {"text_config": TEXT, "vision_config": vision, "projector_config": projector}
    monkeypatch.setattr(models, "real_config", lambda: ModelConfig(**config, pad_token_id=512))


def test_the_default_is_the_real_model():
    config = models.real_config()
    assert config.text_config.num_hidden_layers == 36
    assert config.vision_config.num_patches == 256


def test_the_machine_is_measured_and_named():
    machine = probe()
    assert machine.name
    assert machine.bandwidth > 1e7
    assert machine.flops > 1e7


def test_seconds_waits_for_the_result():
    assert seconds(lambda: mx.zeros((4,))) > 0


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_random_models_are_bfloat16_and_quantised_where_a_conversion_would_be(small_config, bits):
    model = models.random_model(bits)
    dtypes = {value.dtype for _, value in tree_flatten(model.parameters())}
    assert dtypes == ({mx.bfloat16} if bits == 16 else {mx.bfloat16, mx.uint32})
    quantised = [m for _, m in model.named_modules() if isinstance(m, nn.QuantizedLinear)]
    assert len(quantised) == (0 if bits == 16 else 2 * 7 + 1)
    assert all(module.bits == bits for module in quantised)


def test_operations_are_two_per_weight_and_row_at_any_width():
    linear = nn.Linear(128, 64, bias=False)
    assert _flops(nn.Sequential(linear), 3) == 2 * 128 * 64 * 3
    assert _flops(nn.Sequential(linear.to_quantized(64, 4)), 3) == 2 * 128 * 64 * 3


@pytest.mark.parametrize(
    ("unit", "value", "limit", "share"),
    [("tokens/s", 50.0, 100.0, 0.5), ("ms", 20.0, 5.0, 0.25), ("GB", 1.0, None, None)],
)
def test_a_share_is_how_much_of_the_limit_was_reached(unit, value, limit, share):
    assert Figure("x", value, unit, limit).share == share


def test_a_random_model_is_quantised_one_module_at_a_time(small_config):
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = models.random_model(4)
    size = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    assert mx.get_peak_memory() - before < 1.3 * size


def test_every_planned_figure_is_measured(small_config):
    plan = Plan(contexts=[9, 20], batches=[1, 3], rounds=2, tokens=3)
    figures = list(measure(models.random_model(16), Machine("test", 1e9, 1e9), plan))
    assert [figure.name for figure in figures] == [
        "encode one picture",
        "first token, one picture",
        "first token, same picture again",
        "act, 1 robot",
        "act, 8 robots",
        "decode, batch 1, context 9",
        "decode, batch 1, context 20",
        "decode, batch 3, context 9",
        "peak memory",
    ]
    assert len(figures) == plan.steps
    assert all(figure.value > 0 for figure in figures[:-1])


def test_the_json_holds_figures_limits_machine_and_versions(tmp_path):
    results = {"bf16": [Figure("decode, batch 1", 5.0, "tokens/s", 10.0, (4.0, 6.0))]}
    report.save_json(tmp_path / "bench.json", Machine("m", 1.0, 2.0), results)
    saved = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    (figure,) = saved["results"]["bf16"]
    assert (figure["value"], figure["limit"], figure["share"]) == (5.0, 10.0, 0.5)
    assert saved["machine"]["bandwidth"] == 1.0
    assert {"mlx", "mlx-vlm", "mlx-vlm-moxin"} == set(saved["versions"])


def test_the_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    results = {"bf16": [Figure("decode, batch 1, context 9", 5.0, "tokens/s", 10.0)]}
    report.save_plot(tmp_path / "bench.png", Machine("m", 1.0, 2.0), results)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_measures_a_checkpoint(tmp_path):
    options = ["--contexts", "9", "--batches", "1", "2", "--rounds", "1", "--tokens", "2"]
    result = run_module(
        "mlx_vlm_moxin", "bench", "--model", HF_CHECKPOINT, *options, "--json", tmp_path / "b.json"
    )
    assert result.returncode == 0, result.stderr
    assert "Moxin on" in result.stdout
    saved = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert saved["results"]["hf"][0]["name"] == "load"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--plot", "bench.png"], "--plot needs matplotlib; run pip install"),
        (["--json", "none/bench.json"], "There is no folder none to write bench.json into"),
        (["--json", "."], ". is a folder"),
    ],
)
def test_what_cannot_be_written_is_found_before_anything_is_measured(
    options, part, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlx_vlm_moxin.library.plotting.find_spec", lambda name: None)
    monkeypatch.setattr(bench_command, "probe", None)
    assert bench_command.main(options) == 1
    assert part in capsys.readouterr().err
