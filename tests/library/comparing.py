"""Comparisons of two models for the library's tests."""

import mlx.core as mx
import mlx.nn as nn
import mlx_vlm
from mlx.utils import tree_flatten
from support import MESSAGES, image_path


def assert_same_parameters(model: nn.Module, other: nn.Module) -> None:
    ours, theirs = dict(tree_flatten(model.parameters())), dict(tree_flatten(other.parameters()))
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if not mx.array_equal(ours[n], theirs[n])] == []


def answer(model: nn.Module, processor, max_tokens: int = 24) -> mlx_vlm.GenerationResult:
    """Stock mlx-vlm's greedy answer about the first reference picture."""
    text = mlx_vlm.apply_chat_template(processor, model.config, MESSAGES[0], num_images=1)
    return mlx_vlm.generate(
        model, processor, text, [image_path("photo")], max_tokens=max_tokens, temperature=0
    )


def tokens(model: nn.Module, processor) -> list[int]:
    """That answer's tokens."""
    return answer(model, processor).token_ids


def size(model: nn.Module) -> int:
    """Bytes of all parameters."""
    return sum(value.nbytes for _, value in tree_flatten(model.parameters()))
