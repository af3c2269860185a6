"""The PyTorch side of a robot's action: functions that give milliseconds."""

import torch
from support import preprocessor_config
from transformers import DynamicCache, StaticCache

from mlx_vlm_moxin.bench.act import ACTION_DIM, PROMPT_TOKENS

from .actions import CAMERAS, PLACEHOLDERS
from .clock import milliseconds
from .models import Models
from .questions import picture
from .rounds import Run
from .torch_models import DEVICE, DTYPE


def _inputs(models: Models, images: list, batch: int = 1) -> torch.Tensor:
    """The decoder's input: ``<s>``, the pictures' tokens, a prompt of random ids.

    Args:
        models: towers and decoder.
        images: those of all rows, as many for each.
        batch: number of rows.
    """
    from reference.generate.pixels import hf_pixels

    sizes, decoder = models.sizes, models["torch decoder"]
    config = preprocessor_config(sizes.config.vision_config.image_size)
    pixels = torch.stack([hf_pixels(image, config) for image in images]).to(DEVICE, DTYPE)
    text = torch.randint(3, sizes.config.pad_token_id, (batch, 1 + PROMPT_TOKENS)).to(DEVICE)
    embeddings = decoder.get_input_embeddings()(text)
    features = models["torch towers"](pixels)
    pictures = features.reshape(batch, -1, features.shape[-1])
    return torch.cat([embeddings[:, :1], pictures, embeddings[:, 1:]], dim=1)


def tokens(models: Models, batch: int = 1) -> Run:
    """OpenVLA as published: eager, with a growing cache. Its own code refuses several rows."""
    decoder, images = models["torch decoder"], [picture(models)] * batch

    @torch.no_grad()
    def work() -> None:
        cache = DynamicCache(config=decoder.config)
        arguments = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        logits = decoder(inputs_embeds=_inputs(models, images, batch), **arguments).logits
        for _ in range(ACTION_DIM - 1):
            ids = logits[:, -1].argmax(dim=-1, keepdim=True)
            logits = decoder(ids, **arguments).logits
        logits[:, -1].argmax(dim=-1).tolist()

    return lambda: milliseconds(work)


def static(models: Models) -> Run:
    """The same with a static cache, and steps compiled to one CUDA graph."""
    decoder, image = models["torch decoder"], picture(models)
    length = models.sizes.config.vision_config.num_patches + 1 + PROMPT_TOKENS
    cache = StaticCache(config=decoder.config, max_cache_len=length + ACTION_DIM)

    def step(ids: torch.Tensor, cache: StaticCache) -> torch.Tensor:
        logits = decoder(ids, past_key_values=cache, use_cache=True).logits
        return logits[:, -1].argmax(dim=-1, keepdim=True)

    compiled = torch.compile(step, mode="reduce-overhead", fullgraph=True, dynamic=False)

    @torch.no_grad()
    def work() -> None:
        for layer in cache.layers:
            if layer.is_initialized:
                layer.cumulative_length.fill_(0)
        output = decoder(
            inputs_embeds=_inputs(models, [image]),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        ids = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        for _ in range(ACTION_DIM - 1):
            ids = compiled(ids, cache).clone()
        ids.item()

    return lambda: milliseconds(work)


def chunk(models: Models) -> Run:
    """OpenVLA-OFT as published: one eager pass with a mask that hides nothing."""
    decoder = models["torch decoder"]
    images = [picture(models, seed) for seed in range(CAMERAS)]

    @torch.no_grad()
    def work() -> None:
        x = _inputs(models, images)
        zeros = torch.zeros(1, PLACEHOLDERS + 1, x.shape[-1], device=DEVICE, dtype=DTYPE)
        x = torch.cat([x, zeros], dim=1)
        mask = torch.zeros(1, 1, x.shape[1], x.shape[1], device=DEVICE, dtype=DTYPE)
        output = decoder.model(inputs_embeds=x, attention_mask=mask, use_cache=False)
        output.last_hidden_state[:, -PLACEHOLDERS:].sum().item()

    return lambda: milliseconds(work)
