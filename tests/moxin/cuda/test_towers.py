"""The towers' CUDA kernel: which towers it supports, and its results on a GPU."""

import math

import mlx.core as mx
import mlx.nn as nn
import pytest
from cuda_support import assert_as_close, needs_gpu, needs_hopper, randomised, recording
from mlx.utils import tree_flatten
from mlx_lm.tuner.lora import LoRALinear
from mlx_vlm.models.moxin.config import VisionConfig
from mlx_vlm.models.moxin.cuda import device, kernel, tower_kernel, tower_layers, tower_tiles
from mlx_vlm.models.moxin.towers import DINO_ID, TIMM_MODELS
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


# Sizes of the real towers, with fewer blocks.
REAL_DINO = DINO | {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
REAL_SIGLIP = SIGLIP | {"hidden_size": 1152, "num_attention_heads": 16, "intermediate_size": 4304}


def make_model(dtype=mx.bfloat16, dino=DINO, siglip=SIGLIP, image_size=140):
    config = VisionConfig(image_size=image_size, dino=dino, siglip=siglip)
    return randomised(lambda: VisionModel(config), dtype)


@pytest.fixture
def embedded_by_modules(monkeypatch):
    """The modules compute the layers' input."""
    monkeypatch.setattr(VisionModel, "engine_embed", lambda *_: None)


def is_supported(model):
    return tower_layers.supports(tower_layers.make_pairs(model.towers))


def test_other_devices_use_the_modules():
    assert mx.cuda.is_available() or not is_supported(make_model())


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_is_supported(dtype, kernels_everywhere):
    assert is_supported(make_model(dtype))


@pytest.mark.parametrize(
    ("architecture", "kilobytes", "tiles"),
    [
        ("sm_90a", 227, tower_tiles.HOPPER_TILES),
        ("sm_100", 227, (tower_tiles.TILES[0],)),
        ("sm_80", 163, (tower_tiles.TILES[1],)),
        ("sm_89", 99, (tower_tiles.TILES[1],)),
        ("sm_89", 64, ()),
    ],
)
def test_tiles_fit_the_shared_memory(
    architecture, kilobytes, tiles, kernels_everywhere, monkeypatch
):
    monkeypatch.setattr(device, "architecture", lambda: architecture)
    monkeypatch.setattr(device, "attribute", lambda number: 1024 * kilobytes)
    assert tower_tiles.usable_tiles() == tiles
    assert is_supported(make_model()) is bool(tiles)


@pytest.mark.parametrize(
    ("pictures", "tokens", "chosen"),
    [(1, 256, 0), (2, 256, 1), (4, 256, 1), (8, 256, 2), (2, 729, 2)],
)
def test_more_tokens_have_larger_tiles(pictures, tokens, chosen, kernels_everywhere, monkeypatch):
    monkeypatch.setattr(device, "architecture", lambda: "sm_90a")
    limits = {device.MULTIPROCESSOR_COUNT: 132, device.MAX_SHARED_MEMORY_PER_BLOCK: 227 * 1024}
    monkeypatch.setattr(device, "attribute", limits.get)
    dino, siglip = (pictures * (tokens + 5), 1024, 4096), (pictures * tokens, 1152, 4304)
    assert tower_tiles.find_tiles([dino, siglip]) is tower_tiles.HOPPER_TILES[chosen]


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


def plain_layers(dtype, towers, count, eps, tiles):
    """The kernel in MLX."""

    def linear(x, block, *path):
        return x @ block[(*path, "weight")].T + block[(*path, "bias")]

    def norm(x, block, name):
        return mx.fast.layer_norm(x, block[name, "weight"], block[name, "bias"], eps)

    def read(whole, tower, index):
        starts, length = tower.offsets(dtype)
        assert whole.shape == (tower.depth * length,)
        layer = whole[index * length : (index + 1) * length].view(dtype)
        words = mx.uint32.size // dtype.size
        return {
            path: layer[words * starts[path] :][: math.prod(shape)].reshape(shape)
            for path, shape in tower.shapes.items()
        }

    def kernel(arrivals, *arrays):
        xs, arrays = list(arrays[:2]), iter(arrays[2:])
        wholes = [next(arrays) if tower.depth else None for tower in towers]
        for index in range(count):
            for which, tower in enumerate(towers):
                if index >= tower.depth:
                    continue
                block = read(wholes[which], tower, index)
                qkv = linear(norm(xs[which], block, "norm1"), block, "attn", "qkv")
                qkv = qkv.reshape(tower.batch, tower.tokens, 3, tower.heads, -1)
                scale = (tower.width // tower.heads) ** -0.5
                attended = mx.fast.scaled_dot_product_attention(
                    *qkv.transpose(2, 0, 3, 1, 4), scale=scale
                )
                attended = attended.transpose(0, 2, 1, 3).reshape(xs[which].shape)
                branch = linear(attended, block, "attn", "proj")
                x = xs[which] + branch * block.get(("ls1", "gamma"), 1)
                hidden = nn.gelu(linear(norm(x, block, "norm2"), block, "mlp", "fc1"))
                branch = linear(hidden, block, "mlp", "fc2")
                xs[which] = x + branch * block.get(("ls2", "gamma"), 1)
        assert next(arrays, None) is None
        return xs

    return kernel


@pytest.mark.parametrize(
    ("first", "at_once", "expected"), [(1, 1, [1, 1, 1, 1]), (1, 2, [1, 2, 1]), (4, 11, [4])]
)
def test_everything_around_the_kernel_equals_the_modules(
    first, at_once, expected, kernels_everywhere, monkeypatch
):
    monkeypatch.setattr(tower_layers, "DTYPES", (mx.float32,))
    monkeypatch.setattr(tower_kernel, "FIRST_LAYERS", first)
    monkeypatch.setattr(tower_kernel, "LAYERS_AT_ONCE", at_once)
    launches = []
    monkeypatch.setattr(
        tower_kernel,
        "tower_layers",
        lambda *arguments: launches.append(arguments[2]) or plain_layers(*arguments),
    )
    model, pixels = make_model(mx.float32), mx.random.normal((2, 6, 140, 140))
    with mx.stream(mx.cpu):  # GPUs multiply float32 with reduced precision
        actual = model(pixels)
        # SigLIP has four blocks up to its second-to-last one.
        assert launches == expected
        monkeypatch.setattr(device, "enabled", lambda: False)
        assert mx.allclose(actual, model(pixels), atol=1e-4).item()


def test_the_first_layers_are_computed_while_the_others_are_recorded(
    kernels_everywhere, monkeypatch
):
    events, submit = [], mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda *xs: events.append("submit") or submit(*xs))
    monkeypatch.setattr(kernel, "build", recording(events))
    monkeypatch.setattr(tower_kernel, "FIRST_LAYERS", 1)
    monkeypatch.setattr(tower_kernel, "LAYERS_AT_ONCE", 2)
    make_model()(mx.zeros((1, 6, 140, 140)))
    assert events == ["embed_patches", "tower_layers", "submit", *2 * ["tower_layers"], "submit"]


def test_many_blocks_of_both_towers_are_one_kernel(kernels_everywhere, monkeypatch):
    calls = []
    monkeypatch.setattr(kernel, "build", recording(calls))
    monkeypatch.setattr(tower_kernel, "FIRST_LAYERS", 1)
    model = make_model()
    features = model(mx.random.normal((1, 6, 140, 140)))
    assert features.shape == (1, 100, DINO["hidden_size"] + SIGLIP["hidden_size"])
    assert calls == ["embed_patches", "tower_layers", "tower_layers"]


def narrow(timm_id):
    """The tower of that id with two layers and a width of 128."""
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256}
    return TIMM_MODELS[timm_id].tower_config(num_hidden_layers=2, **sizes)


CLIP_ID = "vit_large_patch14_clip_336.openai"
# Towers, size of the picture, tokens of the first tower, and whether the kernel computes them.
FAMILY = {
    "dinosiglip-384": (
        {"dino": DINO_ID, "siglip": "vit_so400m_patch14_siglip_384"},
        {"image_size": 384},
        5 + 729,
        True,
    ),
    "clip-336": ({"clip": CLIP_ID}, {"image_size": 336}, 577, False),
    "in1k-224": (
        {"in1k": "vit_large_patch16_224.augreg_in21k_ft_in1k"},
        {"image_size": 224, "patch_size": 16},
        197,
        False,
    ),
    "dinoclip-336": ({"dino": DINO_ID, "clip": CLIP_ID}, {"image_size": 336}, 5 + 576, False),
}


@pytest.mark.parametrize("name", FAMILY)
def test_towers_of_the_family_use_the_kernel_or_the_modules(
    name, kernels_everywhere, embedded_by_modules, monkeypatch
):
    ids, sizes, tokens, uses_kernel = FAMILY[name]
    config = VisionConfig(**{tower: narrow(timm_id) for tower, timm_id in ids.items()}, **sizes)
    model = randomised(lambda: VisionModel(config), mx.bfloat16)
    calls, embedded = [], []
    embed = type(model.towers[0]).embed
    monkeypatch.setattr(
        type(model.towers[0]),
        "embed",
        lambda tower, x: embedded.append(embed(tower, x)) or embedded[-1],
    )
    monkeypatch.setattr(kernel, "build", recording(calls))
    pixels = mx.random.normal((1, 3 * len(ids), config.image_size, config.image_size))
    features = model(pixels)
    assert features.shape == (1, config.num_patches, 128 * len(ids))
    assert embedded[0].shape[1] == tokens
    assert calls == (["tower_layers"] if uses_kernel else [])
    if not uses_kernel:
        monkeypatch.setattr(device, "enabled", lambda: False)
        assert mx.array_equal(features, model(pixels)).item()


def test_unsupported_towers_are_computed_by_the_modules(kernels_everywhere, monkeypatch):
    monkeypatch.setattr(tower_kernel, "FIRST_LAYERS", 2)
    model, pixels = make_model(mx.float32), mx.random.normal((2, 6, 140, 140))
    in_stages = model(pixels)
    monkeypatch.setattr(device, "enabled", lambda: False)
    assert mx.allclose(in_stages, model(pixels), atol=1e-5).item()


def test_a_tower_that_is_changed_is_checked_again(
    kernels_everywhere, embedded_by_modules, monkeypatch
):
    calls = []
    monkeypatch.setattr(kernel, "build", recording(calls))
    model, pixels = make_model(), mx.random.normal((1, 6, 140, 140))
    model(pixels)
    assert calls == ["tower_layers"]
    layer = adapter(model).siglip.blocks[1].attn.proj
    layer.lora_b = mx.ones_like(layer.lora_b)
    features = model(pixels)
    assert calls == ["tower_layers"]
    monkeypatch.setattr(device, "enabled", lambda: False)
    assert mx.array_equal(features, model(pixels)).item()


@needs_gpu
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(
    "sizes",
    [(DINO, SIGLIP, 140), (DINO, SIGLIP, 384), (REAL_DINO, REAL_SIGLIP, 224)],
    ids=["small", "729 patches", "real"],
)
def test_features_are_as_close_to_float32_as_the_modules(dtype, batch, sizes, monkeypatch):
    check_features(dtype, batch, sizes, monkeypatch)


@needs_hopper
@pytest.mark.parametrize("tiles", tower_tiles.HOPPER_TILES)
def test_features_by_all_tiles_are_as_close_to_float32_as_the_modules(tiles, monkeypatch):
    monkeypatch.setattr(tower_tiles, "HOPPER_TILES", (tiles,))
    check_features(mx.bfloat16, 2, (REAL_DINO, REAL_SIGLIP, 224), monkeypatch)


def check_features(dtype, batch, sizes, monkeypatch):
    monkeypatch.setattr(tower_kernel, "FIRST_LAYERS", 1)  # two launches
    model = make_model(dtype, *sizes)
    assert is_supported(model)
    size = model.config.image_size
    pixels = mx.random.normal((batch, 6, size, size)).astype(dtype)
    exact = VisionModel(model.config)
    weights = tree_flatten(model.parameters())
    exact.load_weights([(path, array.astype(mx.float32)) for path, array in weights])
    exact.eval()
    expected, actual = exact(pixels), model(pixels)
    mx.eval(actual)
    monkeypatch.setattr(device, "enabled", lambda: False)
    allowed = make_model(dtype, *sizes)(pixels)
    width = sizes[0]["hidden_size"]
    for tower in (slice(width), slice(width, None)):
        assert_as_close(*(features[..., tower] for features in (actual, allowed, expected)))
