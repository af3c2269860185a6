"""The decoder's quantised layers give MLX's results with one product per layer and batch."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_vlm.models.moxin.linear import UNPACKED_ROWS, Linear, QuantizedLinear

SETTINGS = [(64, 8, "affine"), (32, 4, "affine"), (32, 4, "mxfp4"), (32, 8, "mxfp8")]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("shape", [(128,), (3, 128), (3, 1, 128), (2, 5, 128)])
def test_results_are_those_of_mlx(shape, setting, bias):
    linear = Linear(128, 96, bias=bias)
    expected = nn.QuantizedLinear.from_linear(linear, *setting)
    x = mx.random.normal(shape)
    assert mx.allclose(linear.to_quantized(*setting)(x), expected(x), atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 1, 128), (1, 5, 128), (128,)])
def test_a_batch_is_one_product(shape, monkeypatch):
    seen = []
    product = mx.quantized_matmul

    def spy(x, *args, **kwargs):
        seen.append(x.ndim)
        return product(x, *args, **kwargs)

    monkeypatch.setattr(mx, "quantized_matmul", spy)
    assert Linear(128, 96).to_quantized(64, 8)(mx.zeros(shape)).shape == (*shape[:-1], 96)
    assert seen == [2]


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("rows", [1, UNPACKED_ROWS - 1, UNPACKED_ROWS])
@pytest.mark.parametrize("setting", [*SETTINGS, (64, 3, "affine"), (64, 6, "affine")])
def test_half_precision_is_exact_to_its_rounding(setting, rows, dtype):
    linear = Linear(2048, 64)
    linear.set_dtype(dtype)
    quantised = linear.to_quantized(*setting)
    x = mx.random.normal((rows, 2048)).astype(dtype)
    y = quantised(x)
    weight = mx.dequantize(quantised.weight, quantised.scales, quantised.get("biases"), *setting)
    expected = x.astype(mx.float32) @ weight.astype(mx.float32).T + linear.bias
    assert y.dtype == dtype
    assert mx.linalg.norm(y - expected) < 0.01 * mx.linalg.norm(expected)


def test_quantised_activations_stay_mlxs():
    linear = Linear(128, 96, bias=False)
    assert isinstance(linear.to_quantized(mode="nvfp4", quantize_input=True), nn.QQLinear)


def test_the_decoder_and_nothing_else_has_these_layers(fp32_checkpoint):
    from mlx_vlm import load

    model, _ = load(str(fp32_checkpoint))
    layers = {p: m for p, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert {p for p, m in layers.items() if isinstance(m, Linear)} == {
        path for path in layers if path.startswith("language_model.")
    }
    model.quantize(group_size=32)
    quantised = [m for _, m in model.named_modules() if isinstance(m, nn.QuantizedLinear)]
    assert len(quantised) == 6 * len(model.layers) + 1  # down_proj is 172 wide, no multiple of 32
    assert all(isinstance(module, QuantizedLinear) for module in quantised)
