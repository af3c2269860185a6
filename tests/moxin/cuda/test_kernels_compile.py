"""Every kernel compiles, at the real sizes, for every architecture; no GPU is needed."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx_vlm.models.moxin.cuda import (
    activations,
    arranged,
    device,
    embeddings,
    exchange,
    fused_batch,
    fused_layers,
    fused_prompt,
    fused_step,
    kernel,
    kv_cache,
    matmul_kernels,
    nvrtc,
    patch_embedding,
    peers,
    prompt_matmul,
    resize_kernels,
    step_attention,
    stream_tiling,
    tiling,
    tower_kernel,
    tower_tiles,
)
from mlx_vlm.models.moxin.cuda import layerwise_kernels as kernels
from mlx_vlm.models.moxin.cuda.decoder_sizes import DecoderSizes
from mlx_vlm.models.moxin.cuda.projections import Format
from mlx_vlm.models.moxin.cuda.tower_kernel import OPTIONAL_PARAMETERS, PARAMETERS, Tower

KILOBYTE = 1024
# Number of multiprocessors, and bytes of shared memory per thread block.
ARCHITECTURES = {
    "sm_80": (108, 163 * KILOBYTE),
    "sm_86": (84, 99 * KILOBYTE),
    "sm_89": (128, 99 * KILOBYTE),
    "sm_90a": (132, 227 * KILOBYTE),
    "sm_100": (148, 227 * KILOBYTE),
    "sm_120": (170, 99 * KILOBYTE),
}
# To save time, one format for each architecture and the highest tile for one: what differs between
# architectures does not depend on these.
FORMATS = {
    "sm_80": Format(8, 64),
    "sm_86": Format(4, 64),
    "sm_89": Format(16, 0),
    "sm_90a": Format(16, 0),
    "sm_100": Format(8, 64),
    "sm_120": Format(4, 64),
}
# The least shared memory, and packed weights; other decoders' kernels compile for sm_90a with whole
# weights. `make test-all` compiles the others.
BY_DEFAULT = ("sm_120",)
ALL = [
    pytest.param(name, marks=() if name in BY_DEFAULT else pytest.mark.slow)
    for name in ARCHITECTURES
]
MOXIN = DecoderSizes(mx.bfloat16, 4096, 14336, 32, 8, 128, 4096, 1e-5, 10000.0)
VICUNA_7B = DecoderSizes(mx.bfloat16, 4096, 11008, 32, 32, 128, 0, 1e-5, 10000.0)
LLAMA_13B = DecoderSizes(mx.float16, 5120, 13824, 40, 40, 128, 0, 1e-5, 10000.0)
DINO = Tower(1, 261, 1024, 16, 4096, 11, PARAMETERS)
SIGLIP = Tower(
    1,
    256,
    1152,
    16,
    4304,
    11,
    tuple(path for path in PARAMETERS if path not in OPTIONAL_PARAMETERS),
)


@pytest.fixture
def on(compiler, kernels_everywhere, monkeypatch, tmp_path):
    """Makes the kernels' host code see a GPU of an architecture."""

    def set_architecture(name):
        multiprocessors, memory = ARCHITECTURES[name]
        attributes = {
            device.MULTIPROCESSOR_COUNT: multiprocessors,
            device.MAX_SHARED_MEMORY_PER_BLOCK: memory,
        }
        monkeypatch.setattr(device, "attribute", attributes.get)
        monkeypatch.setattr(device, "architecture", lambda: name)
        monkeypatch.setattr(device, "name", lambda: name)
        monkeypatch.setattr(device, "driver_version", lambda: 13000)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(device, "resident_blocks", lambda *arguments: multiprocessors)

    return set_architecture


def decoder_builds(sizes, form, rows=64):
    """All kernels of a decoder."""
    layers = fused_layers.LAYERS_AT_ONCE
    tokens = kernels.Tokens(1, rows)
    qkv = (sizes.attended, sizes.keys, sizes.keys)
    gate_up = (sizes.intermediate, sizes.intermediate)
    wide = [96, 128] if form.bits < 16 else []
    products = [(sizes.dtype, 0), (sizes.dtype, 1), (mx.float32, 2)]
    multiply = partial(matmul_kernels.multiply, sizes.dtype, form)
    is_joined = form.bits < 16
    old = (1, sizes.kv_heads, 256, sizes.head_dim)
    new = (1, sizes.kv_heads, rows, sizes.head_dim)
    return [
        partial(fused_step.step_kernel, sizes, 4 * (form,), layers, 512, is_joined),
        partial(fused_prompt.prompt_kernel, sizes, 4 * (form,), layers, rows, 512, is_joined),
        *(partial(multiply, qkv, count, sizes.hidden) for count in {8, rows}),
        partial(multiply, gate_up, rows, sizes.hidden, is_gated=True),
        *(partial(multiply, qkv, count, sizes.hidden) for count in wide),
        *(
            partial(kernels.add_norm, sizes.dtype, rows, sizes.hidden, 1e-5, *product)
            for product in products[::2]
        ),
        *(partial(kernels.rotate, sizes, tokens, *product) for product in products),
        partial(kernels.attend, sizes, tokens, 512),
        partial(kernels.attend, sizes, kernels.Tokens(1, 512), 512),
        *(partial(step_attention.step_attention, sizes, 8, 512, *product) for product in products),
        *(
            partial(matmul_kernels.unpack_weights, sizes.dtype, form, qkv, sizes.hidden)
            for _ in wide[:1]
        ),
        partial(kv_cache.gather_caches, sizes.dtype, 64, old, new, 512),
        partial(embeddings.embed_tokens, sizes.dtype, mx.uint32, rows, 32064, sizes.hidden),
        partial(embeddings.merge_features, sizes.dtype, rows, sizes.hidden),
        partial(activations.gelu_kernel, sizes.dtype, sizes.hidden),
        partial(activations.swiglu_kernel, sizes.dtype, rows, sizes.intermediate, True),
    ]


def arranged_builds(sizes, form, rows):
    """The products of prompts on Hopper, and what comes before them."""
    order = prompt_matmul.find_order(sizes, form, rows)
    qkv, gate_up = (sizes.attended, sizes.keys, sizes.keys), 2 * (sizes.intermediate,)
    multiply = partial(prompt_matmul.multiply, sizes.dtype, form)
    part = prompt_matmul.part_dtype(sizes.dtype)
    return [
        partial(multiply, qkv, order, rows, sizes.hidden, part=part),
        partial(multiply, gate_up, order, rows, sizes.hidden, order, is_gated=True),
        partial(arranged.arrange, sizes.dtype, order, rows, sizes.hidden),
        partial(kernels.add_norm, sizes.dtype, rows, sizes.hidden, 1e-5, part, 4, order),
        partial(kernels.rotate, sizes, kernels.Tokens(1, rows), part, 2),
        partial(kernels.attend, sizes, kernels.Tokens(1, rows), 512, order),
    ]


def batch_builds(sizes, form):
    """The step of a batch in one launch, if the GPU has enough shared memory for it."""
    layers, forms = fused_layers.LAYERS_AT_ONCE, 4 * (form,)
    is_supported = fused_batch.most_positions(sizes, [SimpleNamespace(formats=forms)]) > 0
    build = partial(fused_batch.batch_kernel, sizes, forms, layers, 8, 512, form.bits < 16)
    return [build] if is_supported else []


def tower_builds():
    layers = tower_kernel.LAYERS_AT_ONCE
    embeddings = patch_embedding.Embedding(1024, 1, 4), patch_embedding.Embedding(1152, 0, 0)
    embed, pictures = patch_embedding.embed_patches, (mx.float32, (1, 224, 224), 14)
    common = tower_tiles.find_common_tiles()
    return [
        partial(embed, mx.bfloat16, *pictures, embeddings, common),
        *(
            partial(tower_kernel.tower_layers, mx.bfloat16, (DINO, SIGLIP), layers, 1e-6, tiles)
            for tiles in tower_tiles.usable_tiles()
        ),
    ]


def picture_builds():
    width = partial(resize_kernels.resize_width, 2**40, 640, 480, 224)
    return [width, partial(resize_kernels.resize_height, 2**40, 224, 6)]


def build_all(builds):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        assert all(pool.map(lambda build: build(), builds))


@pytest.mark.parametrize("architecture", ALL)
def test_all_kernels_compile(architecture, on):
    on(architecture)
    rows = tiling.ROW_TILES[-1 if architecture == "sm_90a" else 0]
    form = FORMATS[architecture]
    batches = batch_builds(MOXIN, form)
    assert batches
    build_all([*tower_builds(), *picture_builds(), *batches, *decoder_builds(MOXIN, form, rows)])


@pytest.mark.parametrize(
    ("sizes", "form", "rows"),
    [
        pytest.param(MOXIN, Format(4, 64), 90, id="short"),
        pytest.param(MOXIN, Format(16, 0), 90, id="short, plain"),
        pytest.param(MOXIN, Format(16, 0), 320, id="largest tile, plain", marks=pytest.mark.slow),
        pytest.param(LLAMA_13B, Format(16, 0), 288, id="13B, plain", marks=pytest.mark.slow),
        pytest.param(MOXIN, Format(8, 64), 288, id="long", marks=pytest.mark.slow),
        pytest.param(MOXIN, Format(8, 64), 320, id="the largest tile", marks=pytest.mark.slow),
        pytest.param(LLAMA_13B, Format(8, 32), 288, id="13B", marks=pytest.mark.slow),
        pytest.param(LLAMA_13B, Format(4, 128), 512, id="13B, 4 bits", marks=pytest.mark.slow),
    ],
)
def test_kernels_of_prompts_on_hopper_compile(sizes, form, rows, on):
    on("sm_90a")
    build_all(arranged_builds(sizes, form, rows))


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(VICUNA_7B, id="7B without groups", marks=pytest.mark.slow),
        pytest.param(LLAMA_13B, id="13B", marks=pytest.mark.slow),
    ],
)
def test_kernels_of_other_decoders_compile(sizes, on):
    on("sm_90a")
    step, _prompt, *others = decoder_builds(sizes, Format(16, 0), 16)
    batches = batch_builds(sizes, Format(8, 64))
    assert batches
    build_all([step, *batches, *others])


@pytest.mark.parametrize("architecture", ALL)
def test_kernels_of_a_sharded_decoder_compile(architecture, on, monkeypatch):
    on(architecture)
    group = object()
    others = peers.Peers(mx.zeros((2, 2), mx.uint32), rank=1, size=2)
    monkeypatch.setitem(peers._connections, group, others)
    sizes = MOXIN._replace(heads=16, kv_heads=4, intermediate=7168, group=group)
    forms = 4 * (FORMATS[architecture],)
    layers, arguments = fused_layers.LAYERS_AT_ONCE, (mx.bfloat16, 32, 4096, 1e-5)
    products = (mx.bfloat16, 0), (mx.float32, 8)
    step = partial(fused_step.step_kernel, sizes, forms, layers, 512, forms[0].bits < 16)
    sums = [partial(exchange.exchange_norm, *arguments, *product, group) for product in products]
    many = mx.bfloat16, 288, 4096, 1e-5, mx.bfloat16, 8
    sums.append(partial(exchange.exchange_norm, *many, group))
    batches = batch_builds(sizes, forms[0])
    assert batches
    build_all([step, *sums, *batches])


@pytest.mark.parametrize("form", [Format(8, 64), Format(4, 64)], ids=str)
def test_steps_that_stream_packed_weights_compile(form, on):
    on("sm_90a")
    formats = 4 * (form,)
    assert fused_step.find_stream(MOXIN, formats).slots
    build_all([partial(fused_step.step_kernel, MOXIN, formats, fused_layers.LAYERS_AT_ONCE, 512)])


@pytest.mark.parametrize("rows", [32, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", [Format(8, 64), Format(4, 128), Format(16, 0)], ids=str)
def test_products_that_stream_their_weights_compile(form, rows, on, monkeypatch):
    on("sm_90a")
    monkeypatch.setattr(stream_tiling, "BITS", dict.fromkeys(stream_tiling.ROW_TILES, (form.bits,)))
    entries, build = [], kernel.build

    def record(entry, *arguments, **options):
        entries.append(entry)
        return build(entry, *arguments, **options)

    monkeypatch.setattr(kernel, "build", record)
    multiply = partial(matmul_kernels.multiply, mx.float16, form)
    build_all([partial(multiply, (4096, 1024, 1024), rows, 4096)])
    assert entries == ["stream_matmul"]


def test_a_kernel_that_does_not_compile_says_why(compiler):
    with pytest.raises(RuntimeError, match=r"(?s)does not compile for sm_90.*undefined"):
        nvrtc.compile_source("int x = undefined_name;", "sm_90")


def test_a_kernel_of_an_unknown_architecture_says_why(compiler):
    with pytest.raises(RuntimeError, match="sm_12345"):
        nvrtc.compile_source("int x;", "sm_12345")


def test_every_kernel_states_its_signature_and_has_its_own_name():
    for path in sorted(nvrtc.KERNELS.glob("*.cu")):
        text = path.read_text(encoding="utf-8")
        assert text.count("__global__") == 1, path
        assert f" {path.stem}(\n" in text, path
        assert "// Cost: " in text, path
    names = {kernel.source_of("add_norm", {"EPS": eps}, {})[1] for eps in (1e-5, 1e-6)}
    assert len(names) == 2
