"""Tensors that do not fit the model, or have values that are not finite, are refused."""

import mlx.core as mx
import pytest
from source_checkpoints import computed, edit_json, with_weights, write_ominix

from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.checkpoints.skeleton import build_skeleton
from mlx_vlm_moxin.checkpoints.sources import open_source


class TestBrokenTensors:
    def converted(self, tmp_path, change, **settings):
        source = open_source(str(with_weights(tmp_path / "broken", change)))
        return computed(source, QuantizeOptions(**settings))

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_values_that_are_not_finite_are_refused(self, tmp_path, value):
        name = "language_model.model.layers.2.self_attn.q_proj.weight"

        def change(weights):
            weights[name][3, 5] = value

        with pytest.raises(ValueError, match=f"{name} has values that are not finite"):
            self.converted(tmp_path, change, quantize=True)

    def test_large_finite_values_are_accepted(self, tmp_path):
        name = "language_model.model.norm.weight"
        values = {name: mx.full((128,), 3e38)}
        assert (
            self.converted(tmp_path, lambda weights: weights.update(values))[name][0].item() > 2e38
        )

    def test_values_beyond_float16_are_refused(self, tmp_path):
        name = "language_model.model.norm.weight"
        values = {name: mx.full((128,), 1e6)}
        with pytest.raises(ValueError, match="beyond the range of float16; use --dtype bfloat16"):
            self.converted(tmp_path, lambda weights: weights.update(values), dtype="float16")

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("projector.fc3.bias", mx.zeros((7,)), r"has shape \(7,\), expected \(128,\)"),
            ("projector.fc3.extra", mx.zeros((7,)), "1 tensors unknown"),
            ("projector.fc3.bias", None, "1 tensors missing"),
            ("projector.fc3.bias", mx.zeros((128,), mx.int8), "expected floating-point values"),
        ],
    )
    def test_tensors_that_do_not_fit_are_named(self, tmp_path, name, value, message):
        def change(weights):
            del weights[name]
            weights.update({name: value} if value is not None else {})

        def add(weights):
            weights[name] = value

        with pytest.raises(ValueError, match=message):
            self.converted(tmp_path, add if "extra" in name else change)

    def test_a_projector_of_another_model_is_refused(self, tmp_path):
        def change(weights):
            weights["projector.fc1.weight"] = mx.zeros((512, 64))

        with pytest.raises(ValueError, match="projector maps width 64 to 128, but"):
            self.converted(tmp_path, change)

    def test_packed_tensors_of_another_width_are_refused(self, tmp_path):
        directory = write_ominix(tmp_path / "x")
        (directory / "quantize_config.json").write_text(
            '{"quantization": {"group_size": 64, "bits": 4}}'
        )
        with pytest.raises(
            ValueError, match=r"lm_head\.weight is U32 of shape \(576, 32\), expected U32"
        ):
            build_skeleton(open_source(str(directory)), QuantizeOptions())

    @pytest.mark.parametrize(("part", "dtype"), [("scales", mx.int8), ("weight", mx.int32)])
    def test_packed_tensors_of_another_kind_are_refused(self, tmp_path, part, dtype):
        def change(weights):
            (name,) = (n for n in weights if "lm_head." in n and n.endswith(f".{part}"))
            weights[name] = weights[name].astype(dtype)

        directory = with_weights(tmp_path / "y", change, write_ominix(tmp_path / "x"))
        with pytest.raises(ValueError, match=rf"lm_head\.{part} is I"):
            build_skeleton(open_source(str(directory)), QuantizeOptions())

    @pytest.mark.parametrize(
        "quantization",
        [
            {"bits": 8},
            {"bits": "x", "group_size": 64},
            {"bits": 8, "group_size": 0},
            {"bits": 7, "group_size": 64},
        ],
    )
    def test_quantization_settings_that_mlx_does_not_support_are_refused(
        self, tmp_path, quantization
    ):
        directory = write_ominix(tmp_path / "x")
        edit_json(directory / "quantize_config.json", quantization=quantization)
        with pytest.raises(ValueError, match=r"`quantization` of .* does not exist in MLX"):
            build_skeleton(open_source(str(directory)), QuantizeOptions())
