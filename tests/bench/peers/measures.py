"""Everything that is compared, in the order in which it is measured.

Measures that share models follow each other, bfloat16 before 8 and 4 bits: the memory of at
most three models of 8 billion parameters in bfloat16 is needed at a time.
"""

from .rounds import Measure, Side
from .sizes import Sizes


def _decode_batch(sizes: Sizes) -> Measure:
    ours, lm, torch = ("ours",), ("mlx-lm",), ("torch decoder",)
    batch = {"batch": sizes.batch}
    mlx_vlm = {"model": "ours", **batch}
    mlx_lm = {"model": "mlx-lm", **batch}
    return Measure(
        "decode-batch",
        f"decode, bf16, batch {sizes.batch}, context {sizes.context}, all rows",
        "tokens/s",
        (
            Side("ours, mlx-vlm's batch generator", "mlx_decode:mlx_vlm_batch", ours, mlx_vlm),
            Side("ours, benchmark's loop", "mlx_decode:loop", ours, mlx_vlm),
            Side("mlx-lm, its batch generator", "mlx_decode:mlx_lm_batch", lm, mlx_lm),
            Side("mlx-lm, benchmark's loop", "mlx_decode:loop", lm, mlx_lm),
            Side("PyTorch, static cache, compiled", "torch_decode:static", torch, batch),
        ),
        decode=(sizes.batch, "ours"),
    )


def _decode(sizes: Sizes, name: str, suffix: str, peers: tuple[Side, ...] = ()) -> Measure:
    ours, lm = f"ours{suffix}", f"mlx-lm{suffix}"
    step = "mlx-vlm's step", "mlx_decode:mlx_vlm_step"
    return Measure(
        name,
        f"decode,{suffix or ' bf16'}, batch 1, context {sizes.context}",
        "tokens/s",
        (
            Side(f"ours, {step[0]}", step[1], (ours,), {"model": ours}),
            Side("ours, benchmark's loop", "mlx_decode:loop", (ours,), {"model": ours}),
            Side("mlx-lm, its step", "mlx_decode:mlx_lm_step", (lm,), {"model": lm}),
            Side("mlx-lm, benchmark's loop", "mlx_decode:loop", (lm,), {"model": lm}),
            *peers,
        ),
        decode=(1, ours),
    )


def _decode_batch_quantised(sizes: Sizes) -> Measure:
    options = {"batch": sizes.batch, "tokens": sizes.tokens_quantised_batch}
    names = "ours 8 bits", "mlx-lm 8 bits"
    sides = [
        Side(
            f"{name.split()[0]}, benchmark's loop",
            "mlx_decode:loop",
            (name,),
            {"model": name, **options},
        )
        for name in names
    ]
    return Measure(
        "decode-batch-8bit",
        f"decode, 8 bits, batch {sizes.batch}, context {sizes.context}, all rows",
        "tokens/s",
        tuple(sides),
        decode=(sizes.batch, "ours 8 bits"),
    )


def _pictures(sizes: Sizes) -> tuple[Measure, ...]:
    both = ("torch towers", "torch decoder")
    width, height = sizes.picture
    return (
        Measure(
            "towers",
            "towers and projector, one picture",
            "ms",
            (
                Side("ours", "questions:encode", ("ours",)),
                Side("PyTorch, timm", "torch_questions:encode", ("torch towers",)),
            ),
        ),
        Measure(
            "first-token",
            f"time to first token, one picture ({width}x{height})",
            "ms",
            (
                Side("ours, mlx_vlm.stream_generate", "questions:ask", ("ours",)),
                Side("ours, benchmark's pass", "questions:first_token", ("ours",)),
                Side("PyTorch, timm and transformers", "torch_questions:first_token", both),
            ),
        ),
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
        names = {"ours": "ours, bf16", "ours 8 bits": "ours, 8 bits", "ours 4 bits": "ours, 4 bits"}
        return tuple(
            Side(title, entry, (name,), {"model": name, **options}) for name, title in names.items()
        )

    robots = sizes.robots
    return (
        Measure(
            "act",
            "a robot's action, one picture, seven tokens",
            "ms",
            (
                *widths("actions:tokens"),
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
    torch = ("torch decoder",)
    peers = (
        Side("PyTorch, generate", "torch_decode:generate", torch),
        Side("PyTorch, static cache, compiled", "torch_decode:static", torch),
    )
    return (
        *_preprocessing(sizes),
        _decode(sizes, "decode", "", peers),
        _decode_batch(sizes),
        *_pictures(sizes),
        *_actions(sizes),
        _decode(sizes, "decode-8bit", " 8 bits"),
        _decode_batch_quantised(sizes),
        _decode(sizes, "decode-4bit", " 4 bits"),
    )
