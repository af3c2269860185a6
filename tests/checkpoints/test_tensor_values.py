"""Every tensor is what stock mlx-vlm would write, bit for bit."""

import threading

import mlx.core as mx
import pytest
from mlx_vlm import convert as upstream_convert
from mlx_vlm.convert import QUANT_RECIPES
from mlx_vlm.models.moxin.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES
from mlx_vlm.utils import load_config
from source_checkpoints import computed, load_weights, write_ominix
from support import HF_CHECKPOINT

from mlx_vlm_moxin.checkpoints import tensor_values
from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.checkpoints.skeleton import Skeleton, build_skeleton
from mlx_vlm_moxin.checkpoints.sources import open_source
from mlx_vlm_moxin.checkpoints.tensor_values import compute_tensors, group_by_layer
from mlx_vlm_moxin.conversion.awq import apply_awq

# Widths of the reference checkpoint's decoder: its MLP's 72 fits no group size.
QUANTIZED = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
QUANTIZED += ["mlp.gate_proj", "mlp.up_proj"]
PATHS = [f"language_model.model.layers.{i}.{name}" for i in range(4) for name in QUANTIZED]
PATHS += ["language_model.lm_head"]


@pytest.fixture(scope="module")
def source():
    return open_source(str(HF_CHECKPOINT))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return open_source(str(write_ominix(tmp_path_factory.mktemp("ominix") / "8bit")))


def assert_same(ours: dict[str, mx.array], theirs: dict[str, mx.array]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert mx.array_equal(value, theirs[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dtype": "float32"},
        {"dtype": "float16"},
        {"quantize": True},
        {"quantize": True, "q_bits": 8, "q_group_size": 32, "dtype": "float32"},
        {"quantize": True, "q_bits": 3, "q_group_size": 128},
        {"quantize": True, "q_mode": "mxfp4"},
        pytest.param({"quantize": True, "q_mode": "nvfp4"}, marks=pytest.mark.slow),
        pytest.param({"quantize": True, "q_mode": "mxfp8"}, marks=pytest.mark.slow),
        {"quantize": True, "quant_predicate": "mixed_3_6"},
        pytest.param({"quantize": True, "quant_method": "awq"}, marks=pytest.mark.slow),
        pytest.param(
            {"quantize": True, "quant_method": "awq", "calibration": "multimodal"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "as it is",
)
def test_every_tensor_equals_that_of_stock_mlx_vlm(tmp_path, source, settings):
    arguments = {k: v for k, v in settings.items() if k != "q_mode"}
    mode = settings.get("q_mode", "affine")
    sizes = {"q_group_size": None, "q_bits": None} if mode != "affine" else {}
    upstream_convert(
        str(HF_CHECKPOINT),
        str(tmp_path / "stock"),
        trust_remote_code=False,
        **{"q_mode": mode, **sizes, **arguments},
    )
    options = QuantizeOptions(**settings)
    if options.quant_method == "awq":
        source = apply_awq(source, options)
    assert_same(computed(source, options), load_weights(tmp_path / "stock"))
    assert build_skeleton(source, options).quantization == load_config(tmp_path / "stock").get(
        "quantization"
    )


@pytest.mark.parametrize("group_size", AFFINE_GROUP_SIZES)
@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_decoder_and_head_are_quantised_to_every_width(source, bits, group_size):
    options = QuantizeOptions(quantize=True, q_bits=bits, q_group_size=group_size)
    values = computed(source, options)
    packed = {name.removesuffix(".scales") for name in values if name.endswith(".scales")}
    assert packed == set(PATHS)
    for path in PATHS:
        found = [values[f"{path}.{part}"] for part in ("weight", "scales", "biases")]
        weight = source.tensors[f"{path}.weight"].load()
        expected = mx.quantize(weight, group_size, bits)
        assert all(mx.array_equal(a, b) for a, b in zip(found, expected))


@pytest.mark.parametrize("recipe", QUANT_RECIPES)
def test_every_recipe_uses_its_two_widths(source, recipe):
    skeleton = build_skeleton(source, QuantizeOptions(quantize=True, quant_predicate=recipe))
    low, high = map(int, recipe.split("_")[1:])
    layers = [value for value in skeleton.quantization.values() if isinstance(value, dict)]
    assert {layer["bits"] for layer in layers} == {low, high}
    assert all(
        value.shape == skeleton.tensors[name].shape
        for name, value in compute_tensors(source, skeleton)
    )


def test_the_next_layers_are_computed_while_one_is_written(source, monkeypatch):
    started, compute = [threading.Event() for _ in range(2)], tensor_values.compute_layer

    def announced(source, skeleton, names):
        for event in started:
            if not event.is_set():
                event.set()
                break
        return compute(source, skeleton, names)

    monkeypatch.setattr(tensor_values, "compute_layer", announced)
    values = compute_tensors(source, build_skeleton(source, QuantizeOptions(quantize=True)))
    next(values)
    assert all(event.wait(timeout=60) for event in started)
    values.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("moxin-convert")]


def test_an_error_in_a_thread_reaches_the_caller(source, monkeypatch):
    def fail(source, skeleton, names):
        raise OSError("the disk is gone")

    monkeypatch.setattr(tensor_values, "compute_layer", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        computed(source, QuantizeOptions())


class TestPackedSources:
    """A source that is already quantised: kept, dequantised or quantised again."""

    def dequantised(self, packed, path):
        parts = [packed.tensors[f"{path}.{part}"].load() for part in ("weight", "scales", "biases")]
        return mx.dequantize(*parts, 64, 8)

    @pytest.mark.parametrize(
        "options",
        [QuantizeOptions(), QuantizeOptions(quantize=True, q_bits=8, q_group_size=64)],
        ids=["nothing asked", "the same asked"],
    )
    def test_packed_tensors_are_carried_over(self, packed, options):
        skeleton = build_skeleton(packed, options)
        assert not skeleton.requantizes(packed)
        assert skeleton.quantization == {"group_size": 64, "bits": 8, "mode": "affine"}
        values = computed(packed, options)
        for path in PATHS:
            for part in ("weight", "scales", "biases"):
                name = f"{path}.{part}"
                assert mx.array_equal(values[name], packed.tensors[name].load())

    def test_other_settings_quantise_again(self, packed):
        options = QuantizeOptions(quantize=True, q_bits=4, q_group_size=32)
        skeleton = build_skeleton(packed, options)
        assert skeleton.requantizes(packed)
        assert skeleton.quantization == {"group_size": 32, "bits": 4, "mode": "affine"}
        expected = mx.quantize(self.dequantised(packed, PATHS[0]), 32, 4)
        values = computed(packed, options)
        for part, value in zip(("weight", "scales", "biases"), expected):
            assert mx.array_equal(values[f"{PATHS[0]}.{part}"], value)

    def test_dequantising_gives_bfloat16_weights(self, packed):
        options = QuantizeOptions(dequantize=True)
        assert build_skeleton(packed, options).quantization is None
        values = computed(packed, options)
        assert not any(name.endswith((".scales", ".biases")) for name in values)
        value = values[f"{PATHS[0]}.weight"]
        assert value.dtype == mx.bfloat16
        assert mx.array_equal(value, self.dequantised(packed, PATHS[0]))

    def test_a_dtype_applies_to_scales_too(self, packed):
        values = computed(packed, QuantizeOptions(dtype="float32"))
        assert {value.dtype for value in values.values()} == {mx.float32, mx.uint32}
        assert mx.array_equal(
            values[f"{PATHS[0]}.weight"], packed.tensors[f"{PATHS[0]}.weight"].load()
        )

    @pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
    def test_formats_with_bytes_as_scales_are_dequantised(self, tmp_path, mode):
        upstream_convert(
            str(HF_CHECKPOINT), str(tmp_path / "x"), True, None, None, mode, trust_remote_code=False
        )
        packed = open_source(str(tmp_path / "x"))
        assert_same(computed(packed, QuantizeOptions()), load_weights(tmp_path / "x"))
        weight = computed(packed, QuantizeOptions(dequantize=True))[f"{PATHS[0]}.weight"]
        original = open_source(str(HF_CHECKPOINT)).tensors[f"{PATHS[0]}.weight"].load()
        error = mx.abs(weight - original).max() / mx.abs(original).max()
        assert weight.dtype == mx.bfloat16
        assert error.item() < 0.2


def test_dequantising_an_unquantised_source_is_refused(source):
    with pytest.raises(ValueError, match="nothing to dequantise"):
        build_skeleton(source, QuantizeOptions(dequantize=True))


def test_packed_parts_of_one_layer_are_one_group():
    names = ["embed.weight", "a.weight", "a.scales", "a.biases", "a.bias"]
    names += ["b.weight", "b.scales", "norm.weight", "norm.bias"]
    skeleton = Skeleton({name: mx.zeros((1,)) for name in names}, {}, {"a": {}, "b": {}}, None, 4.0)
    assert group_by_layer(skeleton) == [
        ("embed.weight",),
        ("a.weight", "a.scales", "a.biases"),
        ("a.bias",),
        ("b.weight", "b.scales"),
        ("norm.weight",),
        ("norm.bias",),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"q_bits": 4}, "--q-bits would have no effect without -q"),
        ({"quantize": True, "dequantize": True}, "either --quantize or --dequantize, not both"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(source, options, message):
    with pytest.raises(ValueError, match=message):
        build_skeleton(source, QuantizeOptions(**options))
