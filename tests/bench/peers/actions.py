"""A robot's action, from the PIL image to its ids or hidden states; functions give milliseconds."""

from contextlib import ExitStack

import mlx.core as mx
import numpy as np

from mlx_vlm_moxin.actions.parallel import action_hidden_states
from mlx_vlm_moxin.bench.act import PROMPT_TOKENS, ActionRun

from .clock import milliseconds
from .models import Models
from .questions import picture
from .rounds import Run

# OpenVLA-OFT on LIBERO: two cameras, eight actions of seven values.
CAMERAS, PLACEHOLDERS = 2, 56


def _image_processor(models: Models):
    from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor

    return MoxinImageProcessor(models.sizes.config.vision_config.image_size)


def tokens(models: Models, model: str = "ours", batch: int = 1) -> Run:
    """OpenVLA: seven tokens one after another, for ``batch`` robots at once."""
    run = ActionRun(models[model], picture(models), _image_processor(models), batch)
    return lambda: milliseconds(run)


def chunk(models: Models, model: str = "ours") -> Run:
    """OpenVLA-OFT: one pass with bidirectional attention, up to the input of its head."""
    moxin, image_processor = models[model], _image_processor(models)
    images = [picture(models, seed) for seed in range(CAMERAS)]
    ids = np.random.default_rng(0).integers(3, moxin.config.pad_token_id, PROMPT_TOKENS)

    def work() -> None:
        with ExitStack() as stack:
            pixels = image_processor.pixels(images, stack)
            mx.eval(action_hidden_states(moxin, [ids.tolist()], pixels, None, PLACEHOLDERS, False))

    return lambda: milliseconds(work)
