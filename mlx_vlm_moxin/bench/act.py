"""One robot action, from camera pictures to action values."""

from contextlib import ExitStack

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from PIL import Image

from mlx_vlm_moxin.actions.autoregressive import predict_ids
from mlx_vlm_moxin.actions.parallel import action_hidden_states

# Values per action in OpenVLA's data sets, and tokens of a typical instruction's prompt.
ACTION_DIM = 7
PROMPT_TOKENS = 20


class ActionRun:
    """Runs a model for ``batch`` actions, or chunks of actions if the model predicts chunks.

    A model without action settings is measured like OpenVLA, with one token per value.
    """

    def __init__(self, model: nn.Module, image: Image.Image, image_processor, batch: int):
        self._model, self._image_processor = model, image_processor
        self._config = config = model.config.action_config
        self._is_parallel = config is not None and config.decoding == "parallel"
        self._images = [image] * (batch * (config.num_images if self._is_parallel else 1))
        ids = np.random.default_rng(0).integers(3, model.config.pad_token_id, PROMPT_TOKENS)
        self._prompts = [ids.tolist()] * batch

    @property
    def passes(self) -> int:
        """Number of decoder passes, each of which reads the weights once."""
        return 1 if self._is_parallel else ACTION_DIM

    @property
    def tokens(self) -> int:
        """Number of rows in the first decoder pass."""
        pictures = len(self._images) * self._model.config.vision_config.num_patches
        count = 0
        if self._is_parallel:
            count = self._config.chunk_size * (self._config.action_dim or ACTION_DIM)
        return pictures + len(self._prompts) * (1 + PROMPT_TOKENS + count)

    @property
    def num_images(self) -> int:
        """Number of pictures in the batch."""
        return len(self._images)

    def __call__(self) -> mx.array:
        """The actions, computed."""
        with ExitStack() as stack:
            actions = self._record(self._image_processor.pixels(self._images, stack))
            mx.eval(actions)
        return actions

    def _record(self, pixels: mx.array) -> mx.array:
        if not self._is_parallel:
            return predict_ids(self._model, self._prompts, pixels, ACTION_DIM)
        config, state = self._config, None
        if config.proprio_dim is not None:
            state = mx.zeros((len(self._prompts), config.proprio_dim))
        count = config.chunk_size * (config.action_dim or ACTION_DIM)
        h = action_hidden_states(self._model, self._prompts, pixels, state, count, config.causal)
        if config.head is not None:
            return self._model.action_head(h)
        return mx.argmax(self._model.language_model.lm_head(h), axis=-1)
