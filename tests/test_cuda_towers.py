"""The towers' CUDA kernels: which towers they take, and what they compute where there is a GPU."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from cuda_support import MAX_ERROR_RATIO, needs_gpu, relative_error
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.tuner.lora import LoRALinear
from mlx_vlm.models.moxin import cuda_towers
from mlx_vlm.models.moxin.config import VisionConfig
from mlx_vlm.models.moxin.vision import VisionModel

# Widths that fill no tile, different depths, and a head of 72 as SigLIP's.
DINO = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 512,
    "num_register_tokens": 4,
    "class_token": True,
    "layer_scale": True,
}
SIGLIP = {
    "hidden_size": 144,
    "num_attention_heads": 2,
    "num_hidden_layers": 5,
    "intermediate_size": 2152,
}


def random_parameter(path, parameter):
    noise = mx.random.normal(parameter.shape)
    if "norm" in path or "gamma" in path:
        return 1 + 0.2 * noise if path.endswith(("weight", "gamma")) else 0.2 * noise
    return noise / parameter[0].size ** 0.5 if parameter.ndim > 1 else 0.2 * noise


def make_model(dtype=mx.bfloat16):
    mx.random.seed(0)
    model = VisionModel(VisionConfig(image_size=140, dino=DINO, siglip=SIGLIP))
    model.update(tree_map_with_path(random_parameter, model.parameters()))
    model.set_dtype(dtype)
    model.eval()
    return model


def is_supported(model):
    return cuda_towers.supports((model.dino, model.siglip))


def test_other_devices_use_the_modules():
    assert mx.cuda.is_available() or not is_supported(make_model())


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_supported_dtypes(dtype, kernels_everywhere):
    assert is_supported(make_model(dtype))


def adapter(model):
    attention = model.siglip.blocks[1].attn
    attention.proj = LoRALinear.from_base(attention.proj)
    return model


def quantised(model):
    mlp = model.dino.blocks[1].mlp
    mlp.fc1 = mlp.fc1.to_quantized(64, 8)
    return model


@pytest.mark.parametrize(
    "model",
    [
        lambda: make_model(mx.float32),
        lambda: make_model().train(),
        lambda: adapter(make_model()),
        lambda: quantised(make_model()),
    ],
    ids=["float32", "training", "adapter", "quantised"],
)
def test_what_the_kernels_do_not_compute_goes_through_the_modules(model, kernels_everywhere):
    assert not is_supported(model())


def test_the_deeper_tower_goes_on_alone(monkeypatch):
    model = make_model()
    steps = []

    def step(xs, blocks, rows):
        steps.append((blocks, rows))
        return [x + 1 for x in xs]

    monkeypatch.setattr(cuda_towers, "_step", step)
    xs = [mx.zeros((2, 105, 128)), mx.zeros((2, 100, 144))]
    dino, siglip = cuda_towers.run_blocks((model.dino, model.siglip), xs)
    shallow, deep = len(model.dino.blocks), len(model.siglip.blocks)
    assert [rows for _, rows in steps] == [[210, 200]] * shallow + [[0, 200]] * (deep - shallow)
    assert [blocks[1] for blocks, _ in steps] == model.siglip.blocks
    assert mx.all(dino == shallow).item()
    assert mx.all(siglip == deep).item()


@needs_gpu
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_features_are_as_close_to_float32_as_the_modules(dtype, batch, monkeypatch):
    model = make_model(dtype)
    assert is_supported(model)
    pixels = mx.random.normal((batch, 6, 140, 140)).astype(dtype)
    exact = VisionModel(model.config)
    weights = tree_flatten(model.parameters())
    exact.load_weights([(path, array.astype(mx.float32)) for path, array in weights])
    exact.eval()
    expected, actual = exact(pixels), model(pixels)
    mx.eval(actual)
    monkeypatch.setattr(cuda_towers, "supports", lambda towers: False)
    allowed = make_model(dtype)(pixels)
    width = DINO["hidden_size"]
    for tower in (slice(width), slice(width, None)):
        limit = MAX_ERROR_RATIO * relative_error(allowed[..., tower], expected[..., tower])
        assert relative_error(actual[..., tower], expected[..., tower]) <= limit


@needs_gpu
@pytest.mark.parametrize("epilogue", ["BIAS", "BIAS_GELU", "BIAS_SCALE_ADD"])
@pytest.mark.parametrize(
    "sizes", [((261, 1024, 3072), (256, 1152, 3456)), ((5, 512, 8), (97, 264, 72))]
)
def test_products_are_as_exact_as_their_dtype(epilogue, sizes):
    layers, xs, gammas, residuals = [], [], [mx.random.normal((sizes[0][2],)), None], []
    for rows, inputs, outputs in sizes:
        layers.append(nn.Linear(inputs, outputs))
        layers[-1].set_dtype(mx.bfloat16)
        xs.append(mx.random.normal((1, rows, inputs)).astype(mx.bfloat16))
        residuals.append(mx.random.normal((1, rows, outputs)).astype(mx.bfloat16))
    gammas[0] = gammas[0].astype(mx.bfloat16)
    scaled = (gammas, residuals) if epilogue == "BIAS_SCALE_ADD" else ()
    outputs = cuda_towers._products(epilogue, xs, layers, [size[0] for size in sizes], *scaled)
    for x, layer, gamma, residual, output in zip(xs, layers, gammas, residuals, outputs):
        weight, bias = (layer[name].astype(mx.float32) for name in ("weight", "bias"))
        with mx.stream(mx.cpu):  # GPUs shorten float32 products
            expected = x.astype(mx.float32) @ weight.T + bias
        if epilogue == "BIAS_GELU":
            expected = nn.gelu(expected)
        elif epilogue == "BIAS_SCALE_ADD":
            expected = (expected if gamma is None else expected * gamma) + residual
        assert relative_error(output, expected) < 2**-8
