"""Everything that is compared, in the order in which it is measured.

Measures that share models follow each other, bfloat16 before 8 and 4 bits, so that at most three
models of 8 billion parameters in bfloat16 are in memory at a time.
"""

from dataclasses import replace

from .rounds import Measure, Side
from .sizes import Sizes

BF16, EIGHT, FOUR = "", " 8 bits", " 4 bits"
WIDTHS = (BF16, EIGHT, FOUR)
# Rows of the table in the documentation, by the shape of the model: names in bfloat16. All but the
# towers, which are not quantised, have one at 8 and one at 4 bits as well.
ROWS = {
    "moxin": ("towers", "first-token", "short-prompt", "prompt")
    + ("decode", "decode-long", "decode-batch-8", "decode-batch"),
    "openvla": ("act", "act-batch", "act-chunk"),
}


def name_of(name: str, width: str) -> str:
    """Name of a measure at ``width``, of ``WIDTHS``, from the one in bfloat16."""
    return name + {BF16: "", EIGHT: "-8bit", FOUR: "-4bit"}[width]


def table(shape: str) -> tuple[str, ...]:
    """Names of the table's measures for a model of ``shape``, in the order to measure them."""
    quantised = [name for name in ROWS[shape] if name != "towers"]
    return ROWS[shape] + tuple(name_of(name, width) for width in WIDTHS[1:] for name in quantised)


def _ours(entry: str, width: str, name: str = "ours", **options) -> tuple[Side, Side]:
    """Our side of a measure, and the same with MLX's kernels."""
    model = f"ours{width}"
    options = {"model": model, **options}
    return (
        Side(name, entry, (model,), options),
        Side("the same model, MLX's kernels", entry, (model,), options, kernels=False),
    )


def _mlx_lm(entry: str, width: str, name: str, **options) -> Side:
    model = f"mlx-lm{width}"
    return Side(f"mlx-lm, {name}", entry, (model,), {"model": model, **options})


def _few_tokens(side: Side, sizes: Sizes) -> Side:
    """The same side with fewer tokens in a round, because it needs seconds for them."""
    tokens = sizes.few_tokens
    name = f"{side.name}, {tokens} tokens a round"
    return replace(side, name=name, options={**side.options, "tokens": tokens})


def _decode_batch(sizes: Sizes, width: str) -> Measure:
    """Many rows: the benchmark's loop, and in bfloat16 the libraries' batch generators."""
    loop, batch = "benchmark's loop", {"batch": sizes.batch}
    ours, without = _ours("mlx_decode:loop", width, f"ours, {loop}", **batch)
    sides = [ours, without, _few_tokens(_mlx_lm("mlx_decode:loop", width, loop, **batch), sizes)]
    if width == BF16:
        name = "ours, mlx-vlm's batch generator"
        sides += [
            _ours("mlx_decode:mlx_vlm_batch", width, name, **batch)[0],
            _mlx_lm("mlx_decode:mlx_lm_batch", width, "its batch generator", **batch),
            _few_tokens(_torch_loop(**batch), sizes),
            _torch_static(**batch),
        ]
    return Measure(
        name_of("decode-batch", width),
        f"decode,{width or ' bf16'}, batch {sizes.batch}, context {sizes.context}, all rows",
        "tokens/s",
        tuple(sides),
        decode=(sizes.batch, f"ours{width}", sizes.context),
    )


def _torch_static(**options) -> Side:
    name = "PyTorch, static cache, compiled"
    return Side(name, "torch_decode:static", ("torch decoder",), options, compiled=True)


def _torch_loop(**options) -> Side:
    return Side("PyTorch, eager", "torch_decode:loop", ("torch decoder",), options)


def _decode(sizes: Sizes, width: str) -> Measure:
    """One row: the benchmark's loop and the libraries' own."""
    loop = "benchmark's loop"
    sides = [
        _ours("mlx_decode:mlx_vlm_step", width, "ours, mlx-vlm's step")[0],
        *_ours("mlx_decode:loop", width, f"ours, {loop}"),
        _mlx_lm("mlx_decode:mlx_lm_step", width, "its step"),
        _mlx_lm("mlx_decode:loop", width, loop),
    ]
    if width == BF16:
        sides += [
            Side("PyTorch, eager, generate", "torch_decode:generate", ("torch decoder",)),
            _torch_static(),
        ]
    return Measure(
        name_of("decode", width),
        f"decode,{width or ' bf16'}, batch 1, context {sizes.context}",
        "tokens/s",
        tuple(sides),
        decode=(1, f"ours{width}", sizes.context),
    )


def _loops(sizes: Sizes, width: str) -> tuple[Measure, ...]:
    """The benchmark's loop with a long context, and with a few rows."""
    measures = []
    for name, batch, context in (
        ("decode-long", 1, sizes.long_context),
        ("decode-batch-8", sizes.small_batch, sizes.context),
    ):
        options = {"batch": batch, "context": context}
        mlx_lm = _mlx_lm("mlx_decode:loop", width, "benchmark's loop", **options)
        sides = [*_ours("mlx_decode:loop", width, **options)]
        sides.append(_few_tokens(mlx_lm, sizes) if batch > 1 else mlx_lm)
        if width == BF16:
            sides.append(_few_tokens(_torch_loop(**options), sizes))
            sides += [_torch_static(**options)] if batch > 1 else []
        measures.append(
            Measure(
                name_of(name, width),
                f"decode,{width or ' bf16'}, batch {batch}, context {context}",
                "tokens/s",
                tuple(sides),
                decode=(batch, f"ours{width}", context),
            )
        )
    return tuple(measures)


def _prompts(sizes: Sizes, width: str) -> tuple[Measure, ...]:
    """A long prompt in chunks, and one as long as a picture's in one piece."""
    measures = []
    for name, length, title in (
        ("prompt", sizes.prompt, f"{sizes.prompt} tokens in chunks of {sizes.chunk}"),
        ("short-prompt", sizes.short_prompt, f"{sizes.short_prompt} tokens"),
    ):
        options = {"length": length}
        sides = [
            *_ours("mlx_decode:prompt", width, **options),
            _mlx_lm("mlx_decode:prompt", width, "same chunks", **options),
        ]
        if width == BF16:
            entry = "torch_decode:prompt"
            sides.append(Side("PyTorch, same chunks", entry, ("torch decoder",), options))
        full_name = name_of(name, width)
        measures.append(
            Measure(full_name, f"prompt of {title},{width or ' bf16'}", "ms", tuple(sides))
        )
    return tuple(measures)


def _first_token(sizes: Sizes, width: str) -> Measure:
    both = ("torch towers", "torch decoder")
    sides = list(_ours("questions:first_token", width, "ours, benchmark's pass"))
    if width == BF16:
        stream = Side("ours, mlx_vlm.stream_generate", "questions:ask", ("ours",))
        sides.insert(0, stream)
        name = "PyTorch, timm and transformers"
        sides.append(Side(name, "torch_questions:first_token", both))
    pixels = "{}x{}".format(*sizes.picture)
    return Measure(
        name_of("first-token", width),
        f"time to first token, one picture ({pixels}),{width or ' bf16'}",
        "ms",
        tuple(sides),
    )


def _pictures(sizes: Sizes) -> tuple[Measure, ...]:
    encode = "questions:encode"
    return (
        Measure(
            "towers",
            "towers and projector, one picture",
            "ms",
            (
                Side("ours", encode, ("ours",)),
                Side("the same model, MLX's kernels", encode, ("ours",), kernels=False),
                Side("PyTorch, timm", "torch_questions:encode", ("torch towers",)),
            ),
        ),
        _first_token(sizes, BF16),
        Measure(
            "second-question",
            "second question about a picture",
            "ms",
            (
                Side("ours, key-values kept", "questions:ask", ("ours",), {"reuse": "prefix"}),
                Side("ours, features kept", "questions:ask", ("ours",), {"reuse": "features"}),
                Side("the first question", "questions:ask", ("ours",)),
            ),
        ),
    )


def _actions(sizes: Sizes, width: str) -> tuple[Measure, ...]:
    """One action, those of several robots, a chunk; in bfloat16 next to the published code."""
    torch = ("torch towers", "torch decoder")
    batch = {"batch": sizes.robots}
    name = "PyTorch, static cache, compiled"
    compiled = Side(name, "torch_actions:static", torch, compiled=True)
    measures = []
    for name, title, entry, options, others in (
        ("act", "a robot's action, one picture, seven tokens", "tokens", {}, (compiled,)),
        ("act-chunk", "a chunk of eight actions in one pass, two pictures", "chunk", {}, ()),
        ("act-batch", f"actions of {sizes.robots} robots at once", "tokens", batch, ()),
    ):
        sides = _ours(f"actions:{entry}", width, **options)
        if width == BF16:
            eager = Side("PyTorch, eager", f"torch_actions:{entry}", torch, options)
            sides += (eager, *others)
        full_name = name_of(name, width)
        measures.append(Measure(full_name, f"{title},{width or ' bf16'}", "ms", sides))
    return tuple(measures)


def _preprocessing(sizes: Sizes) -> tuple[Measure, ...]:
    width, height = sizes.photo
    measures = []
    for name, title, decoded in (
        ("preprocess-jpeg", "from its bytes", False),
        ("preprocess-image", "already decoded", True),
    ):
        options = {"decoded": decoded}
        sides = [
            Side("ours", "preprocessing:ours", options=options),
            Side("torchvision, per tower", "preprocessing:torchvision", options=options),
        ]
        if not decoded:
            sides.append(Side("decoding alone", "preprocessing:decode"))
        title = f"preprocessing, {width}x{height} JPEG, {title}"
        measures.append(Measure(name, title, "ms", tuple(sides)))
    return tuple(measures)


def all_measures(sizes: Sizes) -> tuple[Measure, ...]:
    """The measures of a run."""
    quantised = [
        measure
        for width in (EIGHT, FOUR)
        for measure in (
            _first_token(sizes, width),
            _decode(sizes, width),
            *_loops(sizes, width),
            *_prompts(sizes, width),
            _decode_batch(sizes, width),
            *_actions(sizes, width),
        )
    ]
    return (
        *_preprocessing(sizes),
        _decode(sizes, BF16),
        *_loops(sizes, BF16),
        *_prompts(sizes, BF16),
        _decode_batch(sizes, BF16),
        *_pictures(sizes),
        *_actions(sizes, BF16),
        *quantised,
    )
