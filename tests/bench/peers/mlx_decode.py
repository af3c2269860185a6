"""Decoding on MLX: one loop for every model, and the libraries' own generation loops.

All but ``prompt`` return functions that decode ``tokens`` from a cache of ``context`` tokens and
give the tokens per second of all rows together.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from mlx_vlm.models.cache import make_prompt_cache

from .clock import milliseconds, synchronize
from .models import Models
from .rounds import Run

Forward = Callable[[mx.array, list], mx.array]


def _forward(model: object) -> tuple[object, Forward]:
    """The decoder and a function from ids ``[B, T]`` and a cache to the last logits ``[B, V]``.

    Both libraries compute no other logits: mlx-vlm by an argument, mlx-lm in its loop.
    """
    decoder = getattr(model, "language_model", None)
    if decoder is not None:
        return decoder, lambda ids, cache: decoder(ids, cache=cache, logits_to_keep=1).logits[:, -1]
    return model, lambda ids, cache: model.lm_head(model.model(ids, cache)[:, -1:])[:, -1]


def _ids(models: Models, batch: int, length: int) -> mx.array:
    return mx.random.randint(3, models.sizes.config.pad_token_id, (batch, length))


def _filled_cache(models: Models, decoder: object, batch: int, context: int) -> list:
    """A cache of random key-values: a step takes as long with them as with a prompt's."""
    text = models.sizes.config.text_config
    shape = (batch, text.num_key_value_heads, context, text.head_dim)
    cache = make_prompt_cache(decoder)
    for layer in cache:
        layer.update_and_fetch(*(mx.random.normal(shape, mx.bfloat16) for _ in range(2)))
    mx.eval([layer.state for layer in cache])
    return cache


def _cut(cache: list, length: int) -> None:
    """Remove the decoded tokens from the cache, after they are computed."""
    mx.eval([layer.state for layer in cache])
    for layer in cache:
        layer.trim(layer.offset - length)


def _rate(steps: Iterator, count: int) -> float:
    """Steps per second of ``count`` steps after the first, which starts the loop."""
    synchronize()
    next(steps)
    start = time.perf_counter()
    for _ in range(count):
        next(steps)
    return count / (time.perf_counter() - start)


def loop(
    models: Models,
    model: str,
    batch: int = 1,
    context: int | None = None,
    tokens: int | None = None,
) -> Run:
    """The benchmark's greedy loop, which submits one token ahead."""
    decoder, forward = _forward(models[model])
    context, tokens = context or models.sizes.context, tokens or models.sizes.tokens
    cache = _filled_cache(models, decoder, batch, context)
    first = _ids(models, batch, 1)

    def step(ids: mx.array) -> mx.array:
        return mx.argmax(forward(ids, cache), axis=-1, keepdims=True)

    def steps() -> Iterator[mx.array]:
        ids = step(first)
        while True:
            following = step(ids)
            mx.async_eval(following)
            mx.eval(ids)
            yield ids
            ids = following

    def run() -> float:
        rate = _rate(steps(), tokens)
        _cut(cache, context)
        return batch * rate

    return run


def prompt(models: Models, model: str, length: int) -> Run:
    """A prompt in chunks, as both libraries' loops compute it; milliseconds."""
    decoder, forward = _forward(models[model])
    ids = _ids(models, 1, length)
    chunk = models.sizes.chunk
    mx.eval(ids)

    def work() -> None:
        cache = make_prompt_cache(decoder)
        for start in range(0, ids.shape[1], chunk):
            logits = forward(ids[:, start : start + chunk], cache)
            mx.eval([layer.state for layer in cache])
        mx.eval(mx.argmax(logits, axis=-1))

    return lambda: milliseconds(work)


def mlx_vlm_step(models: Models, model: str) -> Run:
    """``mlx_vlm.generate.generate_step``, the loop of every mlx-vlm command."""
    from mlx_vlm.generate import generate_step

    moxin = models[model]
    return _own_loop(
        models,
        moxin,
        lambda token, **kwargs: generate_step(token[None], moxin, None, None, **kwargs),
    )


def mlx_lm_step(models: Models, model: str) -> Run:
    """``mlx_lm.generate.generate_step``, the loop of every mlx-lm command."""
    from mlx_lm.generate import generate_step

    decoder = models[model]
    return _own_loop(
        models, decoder, lambda token, **kwargs: generate_step(token, decoder, **kwargs)
    )


def _own_loop(models: Models, model: object, generate: Callable[..., Iterator]) -> Run:
    decoder, _ = _forward(model)
    context, tokens = models.sizes.context, models.sizes.tokens
    cache = _filled_cache(models, decoder, 1, context)
    first = _ids(models, 1, 1)[0]

    def run() -> float:
        steps = generate(first, prompt_cache=cache, max_tokens=tokens + 1)
        rate = _rate(steps, tokens)
        steps.close()
        _cut(cache, context)
        return rate

    return run


def mlx_vlm_batch(models: Models, model: str, batch: int) -> Run:
    """mlx-vlm's continuous batching, as its server runs it."""
    from mlx_vlm.generate import BatchGenerator

    from .questions import processor

    language_model, moxin_processor = models[model].language_model, processor(models)
    options = {"prefill_batch_size": batch, "completion_batch_size": batch}

    def start(rows: list[list[int]], max_tokens: list[int]) -> BatchGenerator:
        generator = BatchGenerator(
            language_model, moxin_processor, compute_logprobs=False, **options
        )
        embeddings = [language_model.model.embed_tokens(mx.array([row])) for row in rows]
        inputs = [{"inputs_embeds": embedding} for embedding in embeddings]
        generator.insert(rows, max_tokens, prompt_kwargs=inputs)
        return generator

    return _batch(models, batch, start)


def mlx_lm_batch(models: Models, model: str, batch: int) -> Run:
    """mlx-lm's continuous batching, as its server runs it."""
    from mlx_lm.generate import BatchGenerator

    decoder = models[model]
    options = {"prefill_batch_size": batch, "completion_batch_size": batch}

    def start(rows: list[list[int]], max_tokens: list[int]) -> BatchGenerator:
        generator = BatchGenerator(decoder, **options)
        generator.insert(rows, max_tokens)
        return generator

    return _batch(models, batch, start)


def _batch(models: Models, batch: int, start: Callable[..., Any]) -> Run:
    context, tokens = models.sizes.context, models.sizes.tokens

    def steps() -> Iterator[list]:
        generator = start(_ids(models, batch, context).tolist(), [tokens + 8] * batch)
        # Until all rows are in the batch, there is at most one call per chunk of a prompt.
        calls_left = batch * context
        is_complete = False
        try:
            while True:
                _, responses = generator.next()
                calls_left -= 1
                if len(responses) == batch:
                    is_complete = True
                    yield responses
                elif is_complete or not calls_left:
                    raise RuntimeError(f"{batch - len(responses)} of {batch} rows ended early")
        finally:
            generator.close()

    def run() -> float:
        running = steps()
        rate = _rate(running, tokens)
        running.close()
        return batch * rate

    return run
