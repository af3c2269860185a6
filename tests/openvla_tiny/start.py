"""Initial weights: an earlier run's, or moxin-tiny's, which already recognises shapes and colours.

Its Mistral decoder has two key-value heads for four query heads. Each is duplicated here, which
computes the same with as many key-value heads as query heads, as in Llama-2. Of its MLPs the most
important units are kept, and of its vocabulary the words that also occur in instructions.
"""

from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_vlm import load
from mlx_vlm.models.moxin import Model
from moxin_tiny import CHECKPOINT as MOXIN_TINY
from tokenizers import Tokenizer

EMBEDDING_SCALE = 0.05


def _repeat_heads(weight: mx.array, rows: int, head_dim: int) -> mx.array:
    """Every key-value head of ``[KV * head_dim, D]``, repeated to give ``rows`` rows."""
    heads = weight.reshape(-1, head_dim, weight.shape[-1])
    return mx.repeat(heads, rows // weight.shape[0], axis=0).reshape(rows, -1)


def _kept_units(known: dict[str, mx.array], mlp: str, count: int) -> mx.array:
    """Indices of the ``count`` units of an MLP with the largest weights, in order."""
    gate, up = (known[f"{mlp}.{name}.weight"] for name in ("gate_proj", "up_proj"))
    down = known[f"{mlp}.down_proj.weight"]
    size = mx.linalg.norm(gate, axis=1) * mx.linalg.norm(up, axis=1) * mx.linalg.norm(down, axis=0)
    return mx.sort(mx.argsort(-size)[:count])


def _words(old: mx.array, shape: tuple[int, int], rows: dict[int, int]) -> mx.array:
    """An embedding of ``shape`` with the rows of ``old`` for known words, random ones otherwise."""
    new = EMBEDDING_SCALE * mx.random.normal(shape)
    targets, sources = mx.array([*rows]), mx.array([*rows.values()])
    new[targets] = old[sources]
    return new


def start_from_moxin_tiny(model: Model, tokenizer: Tokenizer) -> None:
    """Give ``model`` moxin-tiny's weights, in place, as far as they fit."""
    source, processor = load(str(MOXIN_TINY))
    source.set_dtype(mx.float32)
    known = dict(tree_flatten(source.parameters()))
    old_ids = processor.tokenizer.get_vocab()
    rows = {new: old_ids[token] for token, new in tokenizer.get_vocab().items() if token in old_ids}
    head_dim = model.config.text_config.head_dim

    def start(name: str, value: mx.array) -> mx.array:
        old = known[name]
        if old.shape == value.shape:
            return old
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        if part in ("embed_tokens", "lm_head"):
            return _words(old, value.shape, rows)
        if part in ("k_proj", "v_proj"):
            return _repeat_heads(old, value.shape[0], head_dim)
        kept = _kept_units(known, layer, model.config.text_config.intermediate_size)
        return old[:, kept] if part == "down_proj" else old[kept]

    model.update(tree_map_with_path(start, model.parameters()))


def start_from_checkpoint(model: Model, checkpoint: Path) -> None:
    """Give ``model`` the weights of an earlier training of this architecture, in place.

    Raises:
        ValueError: if the checkpoint has other weights, or others in shape.
    """
    source, _ = load(str(checkpoint))
    source.set_dtype(mx.float32)
    known = dict(tree_flatten(source.parameters()))
    shapes = {name: value.shape for name, value in tree_flatten(model.parameters())}
    if shapes != {name: value.shape for name, value in known.items()}:
        raise ValueError(f"{checkpoint} is not a checkpoint of OpenVLA-tiny's architecture")
    model.update(source.parameters())
