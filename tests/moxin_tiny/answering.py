"""Answers of a model by greedy decoding in batches, and how far its logits have moved.

Questions are grouped by the length of their prompt, so that no row needs padding and
the key-value caches of a group have one length.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm.models.cache import KVCache
from mlx_vlm.models.moxin import Model

from .architecture import NUM_PATCHES
from .dataset import TextEncoder, balanced_questions, normalise, square_bytes
from .drawing import draw
from .questions import Question, names_held_out
from .scenes import draw_scene
from .texts import BOS_ID, EOS_ID

BATCH = 100
MAX_TOKENS = 32


@dataclass
class Group:
    """Questions whose prompts have the same length, as arrays.

    Attributes:
        prompts: ``[B, T]``: ``<s>``, placeholders, prompt.
        answers: ``[B, A]``: the expected answer with ``</s>``, padded with ``</s>``.
        lengths: tokens of each answer.
        pictures: row of each question's picture among the features.
    """

    questions: list[Question]
    prompts: mx.array
    answers: mx.array
    lengths: list[int]
    pictures: mx.array


@dataclass
class Score:
    """Right answers and the divergence from a reference, collected over groups."""

    right: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    divergence: list[float] = field(default_factory=list)
    held_out: list[bool] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Shares of right answers, as fractions; mean KL divergence in nats per token."""
        every = [hit for hits in self.right.values() for hit in hits]
        return {
            "exact_match": round(float(np.mean(every)), 5),
            "by_kind": {k: round(float(np.mean(hits)), 5) for k, hits in self.right.items()},
            "naming_a_held_out_combination": round(float(np.mean(self.held_out or [0])), 5),
            "kl": float(f"{np.mean(self.divergence or [0]):.3g}"),
        }


def make_groups(asked: list[tuple[int, Question]], encoder: TextEncoder, first: int) -> list[Group]:
    """Questions by prompt length, at most ``BATCH`` to a group.

    Args:
        asked: questions with the rows of their pictures.
        first: the placeholder id of visual tokens in ``prompts``.
    """
    by_length: dict[int, list[tuple[int, Question]]] = defaultdict(list)
    for row, question in asked:
        start, _ = encoder.encode(question.text, question.answer)
        by_length[len(start)].append((row, question))
    groups = []
    for _, same in sorted(by_length.items()):
        for start in range(0, len(same), BATCH):
            rows, questions = zip(*same[start : start + BATCH])
            pairs = [encoder.encode(question.text, question.answer) for question in questions]
            longest = max(len(answer) for _, answer in pairs)
            image = [BOS_ID] + [first] * NUM_PATCHES
            groups.append(
                Group(
                    list(questions),
                    mx.array([image + prompt for prompt, _ in pairs]),
                    mx.array([a + [EOS_ID] * (longest - len(a)) for _, a in pairs]),
                    [len(answer) for _, answer in pairs],
                    mx.array(rows),
                )
            )
    return groups


def answer_group(model: Model, group: Group, features: mx.array) -> tuple[mx.array, np.ndarray]:
    """Log-probabilities along the expected answers, and the tokens of greedy decoding.

    Returns:
        Float32 ``[B, A, V]``, and token ids ``[B, <= MAX_TOKENS]``.
    """
    decoder = model.language_model
    cache = [KVCache() for _ in decoder.layers]
    embeddings = model.get_input_embeddings(
        group.prompts, features, cached_image_features=features[group.pictures]
    ).inputs_embeds
    last = decoder(group.prompts, inputs_embeds=embeddings, cache=cache).logits[:, -1:]
    rest = decoder(group.answers[:, :-1], cache=cache).logits
    forced = mx.concatenate([last, rest], axis=1).astype(mx.float32)
    for layer in cache:
        layer.trim(group.answers.shape[1] - 1)
    tokens = [last.argmax(-1)]
    while len(tokens) < MAX_TOKENS and not mx.all((mx.concatenate(tokens, 1) == EOS_ID).any(1)):
        tokens.append(decoder(tokens[-1], cache=cache).logits[:, -1:].argmax(-1))
    logprobs = forced - mx.logsumexp(forced, axis=-1, keepdims=True)
    return logprobs, np.array(mx.concatenate(tokens, axis=1))


def encode_pictures(model: Model, split: str, indices: Iterable[int]) -> mx.array:
    """Visual tokens ``[P, N, D]`` of pictures of a split."""
    squares = np.stack([square_bytes(draw(draw_scene(split, index))) for index in indices])
    parts = []
    for start in range(0, len(squares), BATCH):
        parts.append(model.encode_image(normalise(mx.array(squares[start : start + BATCH]))))
        mx.eval(parts[-1])
    return mx.concatenate(parts)


def score(
    model: Model,
    processor: Any,
    groups: list[Group],
    features: mx.array,
    reference: list[mx.array] | None = None,
) -> tuple[Score, list[mx.array]]:
    """Answer every group; also return the log-probabilities, for use as a reference."""
    result, logprobs = Score(), []
    for index, group in enumerate(groups):
        logprob, tokens = answer_group(model, group, features)
        mx.eval(logprob)
        logprobs.append(logprob)
        for row, question in zip(tokens, group.questions):
            ids = row.tolist()
            ids = ids[: ids.index(EOS_ID)] if EOS_ID in ids else ids
            hit = processor.tokenizer.decode(ids).strip() == question.answer
            result.right[question.kind].append(hit)
            if names_held_out(f"{question.text} {question.answer}"):
                result.held_out.append(hit)
        if reference is not None:
            kl = (mx.exp(reference[index]) * (reference[index] - logprob)).sum(-1)
            for row, length in zip(np.array(kl), group.lengths):
                result.divergence += row[:length].tolist()
    return result, logprobs


def ask_split(
    model: Model, processor: Any, split: str, per_kind: int, start: int = 0
) -> tuple[list[Group], mx.array]:
    """``per_kind`` questions of every kind about a split, and their pictures' features.

    Args:
        start: index of the first picture.
    """
    asked = balanced_questions(split, per_kind, start)
    order = {index: row for row, index in enumerate(dict.fromkeys(index for index, _ in asked))}
    encoder = TextEncoder(processor.tokenizer.backend_tokenizer, 0, 0)
    pairs = [(order[index], question) for index, question in asked]
    groups = make_groups(pairs, encoder, model.config.image_token_index)
    return groups, encode_pictures(model, split, order)
