"""Decoding in PyTorch: transformers' ``generate``, and a compiled step on a static cache."""

import torch
from transformers import DynamicCache, StaticCache

from .clock import milliseconds, seconds
from .models import Models
from .rounds import Run
from .torch_models import DEVICE


def _ids(models: Models, batch: int, length: int) -> torch.Tensor:
    return torch.randint(3, models.sizes.config.pad_token_id, (batch, length), device=DEVICE)


@torch.no_grad()
def generate(models: Models) -> Run:
    """``model.generate``, eager, on a cache that already holds the context; tokens/s."""
    model = models["torch decoder"]
    context, tokens = models.sizes.context, models.sizes.tokens
    ids = _ids(models, 1, context + 1)
    mask = torch.ones_like(ids)
    cache = DynamicCache(config=model.config)
    model(ids[:, :context], past_key_values=cache, use_cache=True, logits_to_keep=1)

    def decode() -> None:
        output = model.generate(
            ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=tokens,
            do_sample=False,
        )
        if output.shape[1] != ids.shape[1] + tokens:
            raise RuntimeError(f"generate gave {output.shape[1] - ids.shape[1]} tokens")

    def run() -> float:
        rate = tokens / seconds(decode)
        cache.crop(context - cache.get_seq_length())
        return rate

    return run


def prompt(models: Models, length: int) -> Run:
    """A prompt in chunks, eager, on a growing cache; milliseconds."""
    model, chunk = models["torch decoder"], models.sizes.chunk
    ids = _ids(models, 1, length)

    @torch.no_grad()
    def work() -> None:
        cache = DynamicCache(config=model.config)
        arguments = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        for part in ids.split(chunk, dim=1):
            logits = model(part, **arguments).logits
        logits[:, -1].argmax(dim=-1).item()

    return lambda: milliseconds(work)


@torch.no_grad()
def loop(models: Models, batch: int, context: int | None = None, tokens: int | None = None) -> Run:
    """One-token steps, eager, on a growing cache; tokens/s of all rows."""
    model = models["torch decoder"]
    context, tokens = context or models.sizes.context, tokens or models.sizes.tokens
    cache = DynamicCache(config=model.config)
    arguments = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    model(_ids(models, batch, context), **arguments)
    first = _ids(models, batch, 1)

    @torch.no_grad()
    def decode() -> None:
        ids = first
        for _ in range(tokens):
            ids = model(ids, **arguments).logits[:, -1].argmax(dim=-1, keepdim=True)

    def run() -> float:
        rate = batch * tokens / seconds(decode)
        cache.crop(context - cache.get_seq_length())
        return rate

    return run


@torch.no_grad()
def static(models: Models, batch: int = 1, context: int | None = None) -> Run:
    """One-token steps compiled to one CUDA graph, as transformers documents it; tokens/s."""
    model = models["torch decoder"]
    context, tokens = context or models.sizes.context, models.sizes.tokens
    cache = StaticCache(config=model.config, max_cache_len=context + tokens + 1)
    ids = _ids(models, batch, context)
    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    first = _ids(models, batch, 1)

    def step(ids: torch.Tensor, cache: StaticCache) -> torch.Tensor:
        logits = model(ids, past_key_values=cache, use_cache=True).logits
        return logits[:, -1].argmax(dim=-1, keepdim=True)

    compiled = torch.compile(step, mode="reduce-overhead", fullgraph=True, dynamic=False)

    @torch.no_grad()
    def decode() -> None:
        ids = first
        for _ in range(tokens):
            # The graph's output is overwritten by its next run.
            ids = compiled(ids, cache).clone()

    def run() -> float:
        for layer in cache.layers:
            layer.cumulative_length.fill_(context)
        return batch * tokens / seconds(decode)

    return run
