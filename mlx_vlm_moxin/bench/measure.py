"""The figures of one model: encoding, prefill, first token, decoding."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_vlm.models.cache import make_prompt_cache
from PIL import Image

from .act import ActionRun
from .machine import Machine, seconds
from .models import bytes_of

TEXT_TOKENS = 32
PREFILL_STEP = 2048
# Number of robots whose actions are predicted in one batch.
ACTION_BATCHES = (1, 8)


@dataclass
class Figure:
    """One measured quantity.

    Attributes:
        name: what was measured.
        value: median, in ``unit``.
        unit: ``ms``, ``s``, ``tokens/s`` or ``GB``.
        limit: the same quantity at the machine's limit; None if no limit is known.
        spread: smallest and largest value of the rounds.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    spread: tuple[float, float] | None = None

    @property
    def share(self) -> float | None:
        """Share of the limit that was reached, 0 to 1; None without a limit."""
        if self.limit is None:
            return None
        return self.value / self.limit if self.unit == "tokens/s" else self.limit / self.value


@dataclass
class Plan:
    """What to measure: ``rounds`` of each, ``tokens`` decoded per round."""

    contexts: list[int] = field(default_factory=lambda: [300, 2000, 8000])
    batches: list[int] = field(default_factory=lambda: [1, 8, 32])
    rounds: int = 5
    tokens: int = 32

    @property
    def steps(self) -> int:
        """Number of figures that ``measure`` yields."""
        batches = len([b for b in self.batches if b != 1])
        return 4 + len(ACTION_BATCHES) + len(self.contexts) + batches


def _figure(name: str, unit: str, values: list[float], limit: float | None) -> Figure:
    return Figure(name, statistics.median(values), unit, limit, (min(values), max(values)))


def _flops(module: nn.Module, tokens: int) -> float:
    """FLOPs of the linear layers for ``tokens`` rows: 2 per weight and row."""
    weights = 0
    for _, layer in module.named_modules():
        if isinstance(layer, nn.QuantizedLinear):
            weights += layer.weight.size * 32 // layer.bits
        elif isinstance(layer, nn.Linear | nn.Conv2d):
            weights += layer.weight.size
    return 2.0 * weights * tokens


def _prompt(model: nn.Module, batch: int, length: int) -> mx.array:
    vocabulary = model.config.pad_token_id
    return mx.random.randint(3, vocabulary, (batch, length))


def _filled_cache(model: nn.Module, batch: int, context: int) -> list:
    """A key-value cache with ``context`` random tokens in each of ``batch`` rows."""
    language_model = model.language_model
    cache = make_prompt_cache(language_model)
    ids = _prompt(model, batch, context)
    step = max(1, PREFILL_STEP // batch)
    for start in range(0, context, step):
        language_model(ids[:, start : start + step], cache=cache, logits_to_keep=1)
        mx.eval([layer.state for layer in cache])
    return cache


def decode_seconds(model: nn.Module, batch: int, context: int, tokens: int) -> float:
    """Seconds per step of a greedy loop that computes one token ahead, as mlx-vlm's does.

    Args:
        model: the model to measure.
        batch: rows that are decoded together.
        context: tokens in the cache of each row before the first step.
        tokens: steps to average over.
    """
    cache = _filled_cache(model, batch, context)

    def step(ids: mx.array) -> mx.array:
        logits = model.language_model(ids, cache=cache).logits[:, -1]
        return mx.argmax(logits, axis=-1, keepdims=True)

    ids = step(_prompt(model, batch, 1))
    mx.eval(ids)
    start = time.perf_counter()
    for _ in range(tokens):
        following = step(ids)
        mx.async_eval(following)
        mx.eval(ids)
        ids = following
    mx.eval(ids)
    return (time.perf_counter() - start) / tokens


def _first_token(model: nn.Module, image, image_processor, features=None) -> mx.array:
    """Compute the first token of the answer to a picture and a question of 32 tokens."""
    config = model.config
    count = config.vision_config.num_patches
    ids = _prompt(model, 1, 1 + count + TEXT_TOKENS)
    ids[:, 1 : 1 + count] = config.image_token_index
    pixels = image_processor.process(image).pixel_values
    kwargs = {} if features is None else {"cached_image_features": features}
    embeddings = model.get_input_embeddings(ids, pixels, **kwargs).inputs_embeds
    cache = make_prompt_cache(model.language_model)
    output = model.language_model(ids, inputs_embeds=embeddings, cache=cache, logits_to_keep=1)
    return mx.argmax(output.logits[:, -1], axis=-1)


def measure(model: nn.Module, machine: Machine, plan: Plan) -> Iterator[Figure]:
    """Yield the figures of ``model`` as they are measured.

    Args:
        model: a loaded or random model.
        machine: the limits to compare with.
        plan: what to measure.
    """
    from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor

    mx.reset_peak_memory()
    vision = model.config.vision_config
    text = model.config.text_config
    size = vision.image_size
    pixels = mx.random.normal((1, 6, size, size))
    towers = _flops(model.vision_tower, vision.num_patches)
    towers += _flops(model.multi_modal_projector, vision.num_patches)

    def timed(run, limit_s: float | None, name: str) -> Figure:
        seconds(run)
        values = [1e3 * seconds(run) for _ in range(plan.rounds)]
        return _figure(name, "ms", values, None if limit_s is None else 1e3 * limit_s)

    encode_limit = towers / machine.flops
    yield timed(lambda: model.encode_image(pixels), encode_limit, "encode one picture")

    decoder = _flops(model.language_model, 1 + vision.num_patches + TEXT_TOKENS)
    prefill_limit = max(decoder / machine.flops, bytes_of(model.language_model) / machine.bandwidth)
    image_processor = MoxinImageProcessor(size)
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    )
    yield timed(
        lambda: _first_token(model, image, image_processor),
        encode_limit + prefill_limit,
        "first token, one picture",
    )
    features = model.encode_image(image_processor.process(image).pixel_values)
    mx.eval(features)
    yield timed(
        lambda: _first_token(model, image, image_processor, features),
        prefill_limit,
        "first token, same picture again",
    )
    # A step reads one row of the embeddings and all other weights of the decoder.
    weights = bytes_of(model.language_model) - bytes_of(model.language_model.model.embed_tokens)
    for batch in ACTION_BATCHES:
        action = ActionRun(model, image, image_processor, batch)
        first = _flops(model.language_model, action.tokens) / machine.flops
        read = weights / machine.bandwidth
        limit = encode_limit * action.num_images + max(first, read) + (action.passes - 1) * read
        yield timed(action, limit, f"act, {batch} robot{'s' if batch > 1 else ''}")
    row = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 2
    shapes = [(1, context) for context in plan.contexts]
    shapes += [(batch, plan.contexts[0]) for batch in plan.batches if batch != 1]
    for batch, context in shapes:
        times = [decode_seconds(model, batch, context, plan.tokens) for _ in range(plan.rounds)]
        limit_s = (weights + batch * context * row) / machine.bandwidth
        name = f"decode, batch {batch}, context {context}"
        yield _figure(name, "tokens/s", [batch / t for t in times], batch / limit_s)
    yield Figure("peak memory", mx.get_peak_memory() / 1e9, "GB")
