"""How much memory a model needs at each width, from the shapes of its parameters.

``python -m mlx_vlm_moxin.library.sizes`` prints the tables of docs/quantisation.md. Nothing is
loaded or computed: the model is built and quantised, and no weight is ever evaluated.
"""

import argparse
import contextlib
import io

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin import Model, ModelConfig
from mlx_vlm.models.moxin.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES
from mlx_vlm.quant_utils import QUANTIZATION_MODE_DEFAULTS, quantize_model

from mlx_vlm_moxin.checkpoints.published import MOXIN_7B

# Part -> prefix of its parameters' names; the first that fits counts.
PARTS = {
    "DINOv2 tower": "vision_tower.dino.",
    "SigLIP tower": "vision_tower.siglip.",
    "CLIP tower": "vision_tower.clip.",
    "ViT tower": "vision_tower.in1k.",
    "projector": "multi_modal_projector.",
    "token embeddings": "language_model.model.embed_tokens.",
    "decoder layers and norm": "language_model.model.",
    "output head": "language_model.lm_head.",
    "action head": "action_head.",
    "proprio projector": "proprio_projector.",
}
QUANTIZED_PARTS = ("decoder layers and norm", "output head")
# Tokens of the context that the tables give the key-value cache for.
CONTEXTS = (300, 2048, 8192)


def build_uncomputed(config: ModelConfig) -> Model:
    """A model whose weights are never computed, for their names and shapes.

    MLX draws each initial weight with a key that follows from the one before. Of many models
    nobody computes, these keys become a chain so long that evaluating it overflows the stack:
    drawing one number cuts it off.
    """
    model = Model(config)
    mx.eval(mx.random.uniform())
    return model


def _count(model: Model, attribute: str) -> dict[str, int]:
    counts = dict.fromkeys(PARTS, 0)
    for name, value in tree_flatten(model.parameters()):
        part = next(part for part, prefix in PARTS.items() if name.startswith(prefix))
        counts[part] += getattr(value, attribute)
    return {part: count for part, count in counts.items() if count}


def part_parameters(config: ModelConfig = MOXIN_7B) -> dict[str, int]:
    """Number of parameters of each of ``PARTS`` that the model has."""
    return _count(build_uncomputed(config), "size")


def part_bytes(
    config: ModelConfig = MOXIN_7B,
    bits: int | None = None,
    group_size: int = 64,
    mode: str = "affine",
) -> dict[str, int]:
    """Bytes of each of ``PARTS`` that the model has, scales and biases of packed weights too.

    Args:
        config: the model; Moxin-7B by default.
        bits: width that the decoder is quantised to; None for bfloat16 throughout.
        group_size: weights that share a scale.
        mode: one of ``mx.quantize``'s.
    """
    model = build_uncomputed(config)
    model.set_dtype(mx.bfloat16)
    if bits is not None:
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_model(model, {}, group_size, bits, mode)
    return _count(model, "nbytes")


def cache_bytes(config: ModelConfig = MOXIN_7B) -> int:
    """Bytes of the bfloat16 key-value cache per token of the context, picture included."""
    text = config.text_config
    heads = text.num_hidden_layers * text.num_key_value_heads
    return 2 * heads * text.head_dim * mx.bfloat16.size


def _table(header: list[str], rows: list[list[str]]) -> str:
    rule = [":--"] + ["--:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f}"


def parts_table() -> str:
    """Markdown: each part's parameters, and its size in bfloat16 and at 8 and 4 bits."""
    numbers = part_parameters()
    sizes = [part_bytes(bits=bits) for bits in (None, 8, 4)]
    rows = [
        [part, f"{numbers[part] / 1e9:.2f}", *(_gigabytes(size[part]) for size in sizes)]
        for part in numbers
    ]
    total = [f"{sum(numbers.values()) / 1e9:.2f}"]
    rows.append(["total", *total, *(_gigabytes(sum(size.values())) for size in sizes)])
    return _table(["part", "parameters (10⁹)", "bf16", "8 bits", "4 bits"], rows)


def widths_table() -> str:
    """Markdown: size of the whole model at each width and group size of mode affine."""
    rows = []
    for bits in AFFINE_BITS[::-1]:
        sizes = [
            sum(part_bytes(bits=bits, group_size=group).values()) for group in AFFINE_GROUP_SIZES
        ]
        rows.append([f"{bits} bits", *map(_gigabytes, sizes)])
    return _table(["", *(f"group size {group}" for group in AFFINE_GROUP_SIZES)], rows)


def modes_table() -> str:
    """Markdown: bits per weight of the quantised layers, and the whole model's size."""
    settings = [(64, bits, "affine") for bits in AFFINE_BITS[::-1]]
    settings += [
        (*values, mode) for mode, values in QUANTIZATION_MODE_DEFAULTS.items() if mode != "affine"
    ]
    numbers = part_parameters()
    weights = sum(numbers[part] for part in QUANTIZED_PARTS)
    rows = []
    for group_size, bits, mode in settings:
        size = part_bytes(bits=bits, group_size=group_size, mode=mode)
        width = 8 * sum(size[part] for part in QUANTIZED_PARTS) / weights
        row = [mode, f"{bits}", f"{group_size}", f"{width:.2f}"]
        rows.append([*row, _gigabytes(sum(size.values()))])
    header = ["mode", "bits", "group size", "stored bits per weight", "whole model"]
    return _table(header, rows)


def cache_table() -> str:
    """Markdown: size of the key-value cache at some lengths of the context."""
    rows = [[f"{tokens:,} tokens", _gigabytes(tokens * cache_bytes())] for tokens in CONTEXTS]
    return _table(["context", "key-value cache"], rows)


def tables() -> str:
    """All tables, as in the guide."""
    return "\n\n".join([parts_table(), widths_table(), modes_table(), cache_table()])


if __name__ == "__main__":
    # Refuses options, which would have no effect.
    argparse.ArgumentParser(description="Sizes of Moxin-7B at every width.").parse_args()
    print(tables())
