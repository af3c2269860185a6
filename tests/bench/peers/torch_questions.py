"""The PyTorch side of towers and first token; functions that give milliseconds."""

import torch
from support import preprocessor_config

from .clock import milliseconds
from .models import Models
from .questions import picture
from .rounds import Run
from .torch_models import DEVICE, DTYPE


def encode(models: Models) -> Run:
    """Towers and projector on pixels that are on the device."""
    towers = models["torch towers"]
    size = models.sizes.config.vision_config.image_size
    pixels = torch.randn(1, 6, size, size, device=DEVICE, dtype=DTYPE)

    @torch.no_grad()
    def work() -> None:
        towers(pixels)

    return lambda: milliseconds(work)


def first_token(models: Models) -> Run:
    """The reference's preprocessing, its towers, then one pass over the whole prompt."""
    from reference.generate.pixels import hf_pixels

    towers, decoder = models["torch towers"], models["torch decoder"]
    sizes = models.sizes
    config = preprocessor_config(sizes.config.vision_config.image_size)
    image = picture(models)
    text = torch.randint(3, sizes.config.pad_token_id, (1, 1 + sizes.text_tokens))

    @torch.no_grad()
    def work() -> None:
        pixels = hf_pixels(image, config)[None].to(DEVICE, DTYPE)
        embeddings = decoder.get_input_embeddings()(text.to(DEVICE))
        parts = [embeddings[:, :1], towers(pixels), embeddings[:, 1:]]
        output = decoder(inputs_embeds=torch.cat(parts, dim=1), use_cache=True, logits_to_keep=1)
        output.logits[:, -1].argmax(dim=-1).item()

    return lambda: milliseconds(work)
