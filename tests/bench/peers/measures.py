"""Everything that is compared, in the order in which it is measured.

Measures that share models follow each other, bfloat16 before 8 and 4 bits, so that at most three
models of 8 billion parameters in bfloat16 are in memory at a time.
"""

from .rounds import Measure, Side
from .sizes import Sizes

BF16, EIGHT, FOUR = "", " 8 bits", " 4 bits"
# Measures of the table in the documentation, by the shape of the model: names in bfloat16, each
# of which has one at 8 and one at 4 bits. Those with a side that PyTorch compiles come last.
_ROWS = {
    "moxin": ("first-token", "short-prompt", "prompt", "decode-long", "decode-batch-8")
    + ("decode", "decode-batch"),
    "openvla": ("act-chunk", "act-batch", "act"),
}


def _suffix(width: str) -> str:
    return {BF16: "", EIGHT: "-8bit", FOUR: "-4bit"}[width]


def table(shape: str) -> tuple[str, ...]:
    """Names of the table's measures for a model of ``shape``, in the order to measure them."""
    names = [f"{name}{_suffix(width)}" for width in (EIGHT, FOUR, BF16) for name in _ROWS[shape]]
    if shape == "moxin":
        names.insert(names.index("first-token"), "towers")
    return tuple(names)


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


def _decode_batch(sizes: Sizes, width: str) -> Measure:
    """Many rows: the benchmark's loop, and in bfloat16 the libraries' batch generators."""
    loop, batch = "benchmark's loop", {"batch": sizes.batch}
    ours, without = _ours("mlx_decode:loop", width, f"ours, {loop}", **batch)
    sides = [ours, without, _mlx_lm("mlx_decode:loop", width, loop, **batch)]
    if width == BF16:
        name = "ours, mlx-vlm's batch generator"
        sides += [
            _ours("mlx_decode:mlx_vlm_batch", width, name, **batch)[0],
            _mlx_lm("mlx_decode:mlx_lm_batch", width, "its batch generator", **batch),
            _torch_static(batch=sizes.batch),
        ]
    return Measure(
        f"decode-batch{_suffix(width)}",
        f"decode,{width or ' bf16'}, batch {sizes.batch}, context {sizes.context}, all rows",
        "tokens/s",
        tuple(sides),
        decode=(sizes.batch, f"ours{width}", sizes.context),
    )


def _torch_static(**options) -> Side:
    name = "PyTorch, static cache, compiled"
    return Side(name, "torch_decode:static", ("torch decoder",), options)


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
            Side("PyTorch, generate", "torch_decode:generate", ("torch decoder",)),
            _torch_static(),
        ]
    return Measure(
        f"decode{_suffix(width)}",
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
        measures.append(
            Measure(
                f"{name}{_suffix(width)}",
                f"decode,{width or ' bf16'}, batch {batch}, context {context}",
                "tokens/s",
                (
                    *_ours("mlx_decode:loop", width, **options),
                    _mlx_lm("mlx_decode:loop", width, "benchmark's loop", **options),
                ),
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
        full_name = f"{name}{_suffix(width)}"
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
        f"first-token{_suffix(width)}",
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
    compiled = Side("PyTorch, static cache, compiled", "torch_actions:static", torch)
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
        full_name = f"{name}{_suffix(width)}"
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
