"""Products of prompts on Hopper, compared with float32, and how they are divided."""

import mlx.core as mx
import plain_kernels
import pytest
from cuda_support import needs_hopper, relative_error
from mlx_vlm.models.moxin.cuda import device, kernel, prompt_matmul
from mlx_vlm.models.moxin.cuda.arranged import Order, arrange
from mlx_vlm.models.moxin.cuda.decoder_sizes import DecoderSizes
from mlx_vlm.models.moxin.cuda.projections import PLAIN_FORMAT, Format
from mlx_vlm.models.moxin.cuda.prompt_division import Division

MOXIN = DecoderSizes(mx.bfloat16, 4096, 14336, 32, 8, 128, 4096, 1e-5, 10000.0)
FORMATS = [
    *((mx.bfloat16, Format(bits, group)) for bits in (8, 4) for group in (32, 64, 128)),
    *((mx.float16, Format(bits, 64)) for bits in (8, 4)),
    *((dtype, PLAIN_FORMAT) for dtype in (mx.bfloat16, mx.float16)),
]


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("rows", [90, 300])
def test_arranging_is_undone(bits, rows):
    x, order = mx.random.normal((rows, 512)), Order(bits, 96)
    arranged = plain_kernels.in_order(x, order)
    assert arranged.shape == order.shape(rows, 512)
    assert not mx.array_equal(arranged.flatten()[:512], x[0])
    assert not mx.array_equal(arranged.flatten()[64:128], x[1, :64])
    assert mx.array_equal(plain_kernels.out_of_order(arranged, order, rows), x)


@pytest.mark.parametrize(
    ("rows", "tokens"),
    [
        (65, 96),
        (112, 112),
        (161, 176),
        (288, 288),
        (289, 304),
        (320, 320),
        (352, 176),
        (512, 256),
        (590, 304),
    ],
)
def test_the_order_of_a_prompt_has_few_unused_rows(rows, tokens, on_hopper):
    assert prompt_matmul.find_order(MOXIN, Format(8, 64), rows) == Order(8, tokens)


@pytest.mark.parametrize(("rows", "tiles"), [(65, 1), (288, 1), (320, 1), (321, 2), (448, 2)])
def test_plain_weights_have_an_order_for_prompts_of_up_to_two_tiles(rows, tiles, on_hopper):
    bits, tokens = prompt_matmul.find_order(MOXIN, PLAIN_FORMAT, rows)
    assert bits == 16
    assert tokens * tiles >= rows > tokens * (tiles - 1)


@pytest.mark.parametrize("tokens", prompt_matmul.TOKENS)
@pytest.mark.parametrize("form", [Format(8, 64), PLAIN_FORMAT], ids=str)
def test_stages_fit_into_shared_memory(tokens, form, on_hopper, monkeypatch):
    launches = []
    monkeypatch.setattr(device, "multiprocessors", lambda: 132)
    monkeypatch.setattr(kernel, "build", lambda *_, **options: launches.append(options))
    arguments = (4096,), Order(form.bits, tokens), tokens, 4096
    prompt_matmul.multiply.__wrapped__(mx.bfloat16, form, *arguments)
    assert launches[0]["shared_memory"] <= 227 * 1024


@pytest.mark.parametrize(
    ("sizes", "form", "rows"),
    [
        pytest.param(MOXIN, Format(8, 64), 64, id="few rows"),
        pytest.param(MOXIN, Format(8, 64), 1536, id="many rows"),
        pytest.param(MOXIN, PLAIN_FORMAT, 64, id="few rows, plain weights"),
        pytest.param(MOXIN, PLAIN_FORMAT, 449, id="many rows, plain weights"),
        pytest.param(MOXIN._replace(intermediate=4304), Format(8, 64), 288, id="width"),
    ],
)
def test_other_products_have_no_order(sizes, form, rows, on_hopper):
    assert prompt_matmul.find_order(sizes, form, rows) is None


def test_other_gpus_have_no_order(kernels_everywhere, monkeypatch):
    monkeypatch.setattr(device, "has_warpgroups", lambda: False)
    assert prompt_matmul.find_order(MOXIN, Format(8, 64), 288) is None


@needs_hopper
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("order", [Order(8, 96), Order(4, 288), Order(16, 224)])
def test_arranged_rows(dtype, order):
    x = mx.random.normal((300, 768)).astype(dtype)
    (actual,) = arrange(dtype, order, *x.shape)(x)
    actual = plain_kernels.out_of_order(actual, order, len(x))
    assert mx.array_equal(actual, x)


def random_weights(dtype, form, matrices, width):
    """Arrays of matrices, and the matrices in float32, rounded to ``dtype``.

    Computed by the CPU, because MLX compiles its kernels of each format for GPUs.
    """
    arrays, whole = [], []
    with mx.stream(mx.cpu):
        for count in matrices:
            weights = mx.random.normal((count, width)).astype(dtype)
            if form == PLAIN_FORMAT:
                arrays.append(weights)
                whole.append(weights.astype(mx.float32))
                continue
            packed = mx.quantize(weights, *form[::-1])
            floats = [array.astype(mx.float32) for array in packed[1:]]
            weights = mx.dequantize(packed[0], *floats, *form[::-1]).astype(dtype)
            arrays += packed
            whole.append(weights.astype(mx.float32))
        mx.eval(arrays, whole)
    return arrays, whole


def products(x, whole):
    """In float32, which GPUs multiply with reduced precision."""
    with mx.stream(mx.cpu):
        found = [x.astype(mx.float32) @ weights.T for weights in whole]
        mx.eval(found)
    return found


def check(dtype, form, order, rows, matrices, width, step=1, part=mx.float32, limit=5e-4):
    """Compare every ``step``-th column of a product."""
    arrays, whole = random_weights(dtype, form, matrices, width)
    x = mx.random.normal((rows, width)).astype(dtype)
    kernel, _ = prompt_matmul.multiply(dtype, form, matrices, order, rows, width, part=part)
    (arranged,) = arrange(dtype, order, rows, width)(x)
    actual, _ = kernel(arranged, *arrays, prompt_matmul.flags())
    (expected,) = products(x, [mx.concatenate(whole)[::step]])
    actual = actual.astype(mx.float32).sum(axis=0)[:, ::step]
    assert relative_error(actual, expected) < limit


@needs_hopper
@pytest.mark.parametrize(("dtype", "form"), FORMATS)
@pytest.mark.parametrize(("rows", "width"), [(70, 256), (150, 2048)])
def test_products(dtype, form, rows, width):
    check(dtype, form, Order(form.bits, 96), rows, (1024, 256, 200), width)


@needs_hopper
@pytest.mark.parametrize("form", [Format(8, 64), Format(4, 64), PLAIN_FORMAT], ids=str)
@pytest.mark.parametrize(("matrices", "width"), [((4096, 1024, 1024), 4096), ((4096,), 14336)])
def test_products_of_the_real_model(form, matrices, width):
    order = prompt_matmul.find_order(MOXIN, form, 280)
    check(mx.bfloat16, form, order, 280, matrices, width, step=37)


@needs_hopper
@pytest.mark.parametrize("form", [Format(8, 64), Format(4, 64), PLAIN_FORMAT], ids=str)
@pytest.mark.parametrize(("matrices", "width"), [((4096, 1024, 1024), 4096), ((4096,), 14336)])
def test_products_of_the_real_model_with_rounded_parts(form, matrices, width):
    order, kind = prompt_matmul.find_order(MOXIN, form, 280), mx.bfloat16
    check(kind, form, order, 280, matrices, width, step=37, part=kind, limit=3e-3)


@needs_hopper
@pytest.mark.parametrize("form", [Format(8, 64), Format(4, 64), PLAIN_FORMAT], ids=str)
@pytest.mark.parametrize("tokens", [tokens for tokens in prompt_matmul.TOKENS if tokens > 96])
def test_products_with_each_tile(form, tokens):
    order = Order(form.bits, tokens)
    check(mx.bfloat16, form, order, tokens - 3, (1024, 256, 200), 512)


@needs_hopper
@pytest.mark.parametrize(
    ("form", "rows", "division"),
    [
        (Format(8, 64), 289, Division(132, 144, 1)),
        (Format(4, 64), 512, Division(132, 156, 1)),
        (PLAIN_FORMAT, 289, Division(132, 144, 1)),
    ],
    ids=str,
)
def test_gated_products_whose_items_thread_blocks_share(form, rows, division, monkeypatch):
    matrices, width = (9216, 9216), 512
    order = prompt_matmul.find_order(MOXIN, form, rows)
    arrays, whole = random_weights(mx.bfloat16, form, matrices, width)
    x = (mx.random.normal((rows, width)) / width**0.5).astype(mx.bfloat16)
    monkeypatch.setattr(prompt_matmul, "find_division", lambda *_: division)
    multiply = prompt_matmul.multiply.__wrapped__
    kernel, _ = multiply(mx.bfloat16, form, matrices, order, rows, width, order, is_gated=True)
    (arranged,), flags = arrange(mx.bfloat16, order, rows, width)(x), prompt_matmul.flags()
    results = []
    for _ in range(2):
        result = kernel(arranged, *arrays, flags)[0]
        # Without the rows that fill the last tile, which are computed from any values.
        results.append(plain_kernels.out_of_order(result, order, rows))
        mx.eval(results)  # launches that share flags do not overlap
    assert mx.array_equal(*results)
    gates, values = products(x, [matrix[::37] for matrix in whole])
    actual = results[0][:, ::37]
    assert relative_error(actual, gates * mx.sigmoid(gates) * values) < 3e-3


@needs_hopper
@pytest.mark.parametrize(("dtype", "form"), FORMATS)
@pytest.mark.parametrize("next_bits", [0, 16, 8, 4])
def test_gated_products(dtype, form, next_bits):
    if form not in (Format(8, 64), Format(4, 64), PLAIN_FORMAT) and next_bits != form.bits:
        pytest.skip("to save time, one order for each of these formats")
    order, rows, matrices, width = Order(form.bits, 96), 150, (512, 512), 768
    next_order = Order(next_bits, 96) if next_bits else None
    arrays, whole = random_weights(dtype, form, matrices, width)
    x = (mx.random.normal((rows, width)) / width**0.5).astype(dtype)
    kernel, _ = prompt_matmul.multiply(
        dtype, form, matrices, order, rows, width, next_order, is_gated=True
    )
    (arranged,) = arrange(dtype, order, rows, width)(x)
    actual, _ = kernel(arranged, *arrays, prompt_matmul.flags())
    if next_order is not None:
        actual = plain_kernels.out_of_order(actual, next_order, rows)
    gates, values = products(x, whole)
    limit = 3e-3 if dtype == mx.bfloat16 else 6e-4  # one rounding
    assert relative_error(actual, gates * mx.sigmoid(gates) * values) < limit
