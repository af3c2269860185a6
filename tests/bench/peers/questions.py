"""Questions about a picture, from the PIL image to the first token of the answer.

All return functions that give milliseconds.
"""

import time
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm import stream_generate
from mlx_vlm.generate.common import PromptCacheState
from mlx_vlm.utils import StoppingCriteria
from mlx_vlm.vision_cache import VisionFeatureCache
from PIL import Image
from support import HF_CHECKPOINT

from mlx_vlm_moxin.bench import measure

from .clock import milliseconds, synchronize
from .models import Models
from .rounds import Run


def picture(models: Models, seed: int = 0) -> Image.Image:
    """A picture of noise."""
    width, height = models.sizes.picture
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


class NeverStop(StoppingCriteria):
    """No token ends an answer; mlx-vlm's class adds the tokenizer's end token to any list."""

    def reset(self, eos_token_ids: list[int] | None = None) -> None:
        self.eos_token_ids: list[int] = []


def processor(models: Models) -> Any:
    """Moxin's processor in the run's sizes, with the bundled tokenizer and no stop token."""
    from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor
    from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor

    config = models.sizes.config
    tokenizer = MoxinProcessor.from_pretrained(HF_CHECKPOINT).tokenizer
    tokenizer.stopping_criteria = NeverStop([], tokenizer)
    return MoxinProcessor(
        MoxinImageProcessor(config.vision_config.image_size),
        tokenizer,
        image_token_index=config.image_token_index,
        vocab_size=config.text_config.vocab_size,
        num_image_tokens=config.vision_config.num_patches,
    )


def _question(tokenizer: Any, word: str, length: int) -> str:
    """A prompt of ``length`` tokens that differs from others after its first few."""
    text = f"In: {word}"
    while len(tokenizer(text + "\nOut:", add_special_tokens=False)["input_ids"]) < length:
        text += f" {word}"
    return text + "\nOut:"


def encode(models: Models) -> Run:
    """Towers and projector on pixels that are on the device."""
    model = models["ours"]
    size = models.sizes.config.vision_config.image_size
    pixels = mx.random.normal((1, 6, size, size))
    mx.eval(pixels)
    return lambda: milliseconds(lambda: mx.eval(model.encode_image(pixels)))


def first_token(models: Models, model: str = "ours") -> Run:
    """The benchmark's way: preprocessing, towers, prefill, without mlx-vlm's loop."""
    from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor

    moxin = models[model]
    image = picture(models)
    image_processor = MoxinImageProcessor(models.sizes.config.vision_config.image_size)
    return lambda: milliseconds(
        lambda: mx.eval(measure._first_token(moxin, image, image_processor))
    )


def ask(models: Models, reuse: str | None = None) -> Run:
    """``mlx_vlm.stream_generate`` with a new picture or a known one.

    Args:
        reuse: what is kept from the previous question, another one about the same picture:
            None, ``"features"`` (mlx-vlm's vision cache) or ``"prefix"`` (its prompt cache
            state: the key-values of everything before the question).

    Raises:
        RuntimeError: if mlx-vlm did not reuse the picture's key-values.
    """
    model, moxin = models["ours"], processor(models)
    # A first question is about another picture than the previous question.
    images = [picture(models, seed) for seed in ((0, 0) if reuse else (0, 1))]
    length = models.sizes.text_tokens
    questions = [_question(moxin.tokenizer, word, length) for word in "ab"]
    asked = list(zip(questions, images))
    kept: dict[str, Any] = {}
    if reuse == "features":
        kept["vision_cache"] = VisionFeatureCache()
    elif reuse == "prefix":
        kept["prompt_cache_state"] = PromptCacheState()

    def answer(question: str, image: Image.Image) -> tuple[float, int]:
        """Milliseconds to the first token, and tokens that were not computed again."""
        synchronize()
        start = time.perf_counter()
        results = stream_generate(model, moxin, question, [image], max_tokens=1, **kept)
        first = next(results)
        elapsed = time.perf_counter() - start
        for _ in results:  # mlx-vlm stores the key-values at the end
            pass
        return 1e3 * elapsed, first.cached_tokens

    answer(*asked[1])

    def run() -> float:
        asked.reverse()
        elapsed, cached = answer(*asked[1])
        if reuse == "prefix" and cached <= models.sizes.config.vision_config.num_patches:
            raise RuntimeError(f"only {cached} tokens of the prompt were reused")
        return elapsed

    return run
