"""The towers' CUDA kernels: which towers they take, and what they compute where there is a GPU."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from cuda_support import assert_as_close, needs_gpu, randomised, recording, relative_error
from mlx.utils import tree_flatten
from mlx_lm.tuner.lora import LoRALinear
from mlx_vlm.models.moxin import cuda_kernels, cuda_tower_kernels, cuda_towers
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


def make_model(dtype=mx.bfloat16):
    config = VisionConfig(image_size=140, dino=DINO, siglip=SIGLIP)
    return randomised(lambda: VisionModel(config), dtype)


def is_supported(model):
    return cuda_towers.supports(cuda_towers.make_pairs((model.dino, model.siglip)))


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

    def step(xs, blocks, tokens):
        steps.append((blocks, [own.rows for own in tokens]))
        return [x + 1 for x in xs]

    monkeypatch.setattr(cuda_towers, "supports", lambda pairs: True)
    monkeypatch.setattr(cuda_towers, "_step", step)
    xs = [mx.zeros((2, 105, 128)), mx.zeros((2, 100, 144))]
    dino, siglip = cuda_towers.Stages((model.dino, model.siglip))(xs)
    shallow, deep = len(model.dino.blocks), len(model.siglip.blocks)
    assert [rows for _, rows in steps] == [[210, 200]] * shallow + [[0, 200]] * (deep - shallow)
    assert [blocks[1] for blocks, _ in steps] == model.siglip.blocks
    assert mx.all(dino == shallow).item()
    assert mx.all(siglip == deep).item()


def test_a_pair_of_blocks_is_seven_kernels(kernels_everywhere, monkeypatch):
    calls = []
    monkeypatch.setattr(cuda_tower_kernels, "prepare", recording(calls))
    for name in ("products", "layer_norms", "attention"):  # not the kept ones
        uncached = getattr(cuda_tower_kernels, name).__wrapped__
        monkeypatch.setattr(cuda_tower_kernels, name, uncached)
    model = make_model()
    features = model(mx.random.normal((1, 6, 140, 140)))
    assert features.shape == (1, 100, DINO["hidden_size"] + SIGLIP["hidden_size"])
    step = ["layer_norms", "products", "attention", "products"]
    step += ["layer_norms", "products", "products"]
    assert calls == len(model.siglip.blocks) * step


def test_in_stages_the_modules_give_the_same(kernels_everywhere, monkeypatch):
    monkeypatch.setattr(cuda_towers, "BLOCKS_AT_ONCE", 2)
    model, pixels = make_model(mx.float32), mx.random.normal((2, 6, 140, 140))
    in_stages = model(pixels)
    monkeypatch.setattr(cuda_kernels, "is_available", lambda: False)
    assert mx.allclose(in_stages, model(pixels), atol=1e-5).item()


def test_a_tower_that_is_changed_is_asked_about_again(kernels_everywhere, monkeypatch):
    asked, original = [], cuda_towers.supports
    monkeypatch.setattr(
        cuda_towers, "supports", lambda pairs: asked.append(original(pairs)) or False
    )
    model, pixels = make_model(), mx.random.normal((1, 6, 140, 140))
    before = model(pixels)
    assert all(asked)
    asked.clear()
    layer = adapter(model).siglip.blocks[1].attn.proj
    layer.lora_b = mx.ones_like(layer.lora_b)
    assert not mx.array_equal(before, model(pixels)).item()
    assert not all(asked)


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
    monkeypatch.setattr(cuda_towers, "supports", lambda pairs: False)
    allowed = make_model(dtype)(pixels)
    width = DINO["hidden_size"]
    for tower in (slice(width), slice(width, None)):
        assert_as_close(*(features[..., tower] for features in (actual, allowed, expected)))


@needs_gpu
@pytest.mark.parametrize("epilogue", ["BIAS", "BIAS_GELU", "BIAS_SCALE_ADD"])
@pytest.mark.parametrize(
    "sizes", [((261, 1024, 3072), (256, 1152, 3456)), ((5, 512, 8), (97, 264, 72))]
)
def test_products_are_as_exact_as_their_dtype(epilogue, sizes):
    is_scaled = epilogue == "BIAS_SCALE_ADD"
    layers, xs, arrays = [], [], []
    gammas, residuals = [mx.random.normal((sizes[0][2],)).astype(mx.bfloat16), None], []
    for gamma, (rows, inputs, outputs) in zip(gammas, sizes):
        layers.append(nn.Linear(inputs, outputs))
        layers[-1].set_dtype(mx.bfloat16)
        xs.append(mx.random.normal((1, rows, inputs)).astype(mx.bfloat16))
        residuals.append(mx.random.normal((1, rows, outputs)).astype(mx.bfloat16))
        arrays += [xs[-1], layers[-1].weight, layers[-1].bias]
        arrays += [gamma] if is_scaled and gamma is not None else []
        arrays += [residuals[-1]] if is_scaled else []
    kernel = cuda_tower_kernels.products(
        epilogue,
        mx.bfloat16,
        tuple(cuda_tower_kernels.Tokens(1, rows, rows) for rows, _, _ in sizes),
        tuple(layer.weight.shape for layer in layers),
        (is_scaled, False),
    )
    outputs = kernel(*arrays)
    for x, layer, gamma, residual, output in zip(xs, layers, gammas, residuals, outputs):
        weight, bias = (layer[name].astype(mx.float32) for name in ("weight", "bias"))
        with mx.stream(mx.cpu):  # GPUs shorten float32 products
            expected = x.astype(mx.float32) @ weight.T + bias
        if epilogue == "BIAS_GELU":
            expected = nn.gelu(expected)
        elif is_scaled:
            expected = (expected if gamma is None else expected * gamma) + residual
        assert relative_error(output, expected) < 2**-8
