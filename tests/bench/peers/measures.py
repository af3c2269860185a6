"""Everything that is compared, in the order in which it is measured.

Measures that share models follow each other, bfloat16 before 8 and 4 bits, so that at most three
models of 8 billion parameters in bfloat16 are in memory at a time.
"""

from .rounds import Measure, Side
from .sizes import Sizes

BF16, EIGHT, FOUR = "", " 8 bits", " 4 bits"
# The rows of the table in the documentation.
TABLE = ("towers", "first-token", "decode", "decode-batch", "act", "decode-8bit", "decode-4bit")
TABLE += ("decode-batch-8bit", "decode-batch-4bit", "first-token-8bit", "first-token-4bit")
TABLE += tuple(
    f"{name}{width}"
    for name in ("decode-long", "decode-batch-8", "prompt")
    for width in ("", "-8bit", "-4bit")
)


def _suffix(width: str) -> str:
    return {BF16: "", EIGHT: "-8bit", FOUR: "-4bit"}[width]


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


def _prompt(sizes: Sizes, width: str) -> Measure:
    sides = [
        *_ours("mlx_decode:prompt", width),
        _mlx_lm("mlx_decode:prompt", width, "same chunks"),
    ]
    if width == BF16:
        sides.append(Side("PyTorch, same chunks", "torch_decode:prompt", ("torch decoder",)))
    return Measure(
        f"prompt{_suffix(width)}",
        f"prompt of {sizes.prompt} tokens in chunks of {sizes.chunk},{width or ' bf16'}",
        "ms",
        tuple(sides),
    )


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


def _actions(sizes: Sizes) -> tuple[Measure, ...]:
    torch = ("torch towers", "torch decoder")

    def widths(entry: str, **options) -> tuple[Side, ...]:
        names = {BF16: "ours, bf16", EIGHT: "ours, 8 bits", FOUR: "ours, 4 bits"}
        return tuple(_ours(entry, width, name, **options)[0] for width, name in names.items())

    robots = sizes.robots
    return (
        Measure(
            "act",
            "a robot's action, one picture, seven tokens",
            "ms",
            (
                *widths("actions:tokens"),
                _ours("actions:tokens", BF16)[1],
                Side("PyTorch, eager", "torch_actions:tokens", torch),
                Side("PyTorch, static cache, compiled", "torch_actions:static", torch),
            ),
        ),
        Measure(
            "act-chunk",
            "a chunk of eight actions in one pass, two pictures",
            "ms",
            (
                *widths("actions:chunk"),
                Side("PyTorch, eager", "torch_actions:chunk", torch),
            ),
        ),
        Measure(
            "act-batch",
            f"actions of {robots} robots at once, one picture each",
            "ms",
            widths("actions:tokens", batch=robots),
        ),
    )


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
            _prompt(sizes, width),
            _decode_batch(sizes, width),
        )
    ]
    return (
        *_preprocessing(sizes),
        _decode(sizes, BF16),
        *_loops(sizes, BF16),
        _prompt(sizes, BF16),
        _decode_batch(sizes, BF16),
        *_pictures(sizes),
        *_actions(sizes),
        *quantised,
    )
