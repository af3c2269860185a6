"""Comparisons with the PyTorch reference; each raises AssertionError on a difference."""

import json

import mlx.core as mx
import numpy as np
from mlx_vlm import apply_chat_template, generate
from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor
from mlx_vlm.models.moxin.image_settings import RESIZE_STRATEGIES
from support import (
    ARRAYS,
    BF16_ERRORS,
    FEATURES_TOLERANCE,
    GOLDENS,
    HF_CHECKPOINT,
    IMAGE_NAMES,
    LOGITS_TOLERANCE,
    PROMPTS,
    TINY,
    image_path,
)


def image_processor(strategy: str) -> MoxinImageProcessor:
    path = HF_CHECKPOINT / "preprocessor_config.json"
    if strategy != "resize-naive":
        path = TINY / f"preprocessor_config.{strategy}.json"
    return MoxinImageProcessor.from_dict(json.loads(path.read_text(encoding="utf-8")))


def check_pixels() -> None:
    """Every picture through every resize strategy: equal to the last bit."""
    for strategy in RESIZE_STRATEGIES:
        processor = image_processor(strategy)
        for name in IMAGE_NAMES:
            pixels = processor(image_path(name))[0]
            np.testing.assert_array_equal(pixels, ARRAYS[f"pixels/{strategy}/{name}"])


def features(model, processor, name: str) -> dict[str, np.ndarray]:
    """Float32 outputs of both towers and the projector for picture ``name``."""
    pixel_values = mx.array(processor.image_processor(image_path(name)))
    towers = model.vision_tower(pixel_values)
    width = model.config.vision_config.dino.hidden_size
    outputs = {
        "dino": towers[..., :width],
        "siglip": towers[..., width:],
        "projector": model.encode_image(pixel_values),
    }
    return {kind: np.array(value[0].astype(mx.float32)) for kind, value in outputs.items()}


def check_features(model, processor) -> None:
    """Tower and projector outputs, in standard deviations of the reference."""
    for name in IMAGE_NAMES:
        for kind, value in features(model, processor, name).items():
            reference = ARRAYS[f"hf/{kind}/{name}"]
            np.testing.assert_allclose(
                value, reference, rtol=0, atol=FEATURES_TOLERANCE * reference.std()
            )


def logits(model, processor, name: str | None, prompt: str) -> np.ndarray:
    """Float32 logits ``[T, V]`` of a prompt about picture ``name`` (or about none)."""
    inputs = processor(prompt, [image_path(name)] if name else None)
    output = model(inputs["input_ids"], inputs.get("pixel_values"))
    return np.array(output.logits[0].astype(mx.float32))


def check_logits(model, processor) -> None:
    """All prompts about all pictures at the last position; a few at every position."""
    close = {"rtol": 0, "atol": LOGITS_TOLERANCE}
    for name in IMAGE_NAMES:
        for index, prompt in enumerate(PROMPTS):
            value = logits(model, processor, name, prompt["prompt"])
            reference = ARRAYS[f"hf/logits_last/{name}/{index}"]
            np.testing.assert_allclose(value[-1], reference, **close)
            if f"hf/logits/{name}/{index}" in ARRAYS:
                reference = ARRAYS[f"hf/logits/{name}/{index}"]
                np.testing.assert_allclose(value, reference, **close)
    value = logits(model, processor, None, PROMPTS[0]["prompt"])
    np.testing.assert_allclose(value, ARRAYS["hf/text_only_logits/0"], **close)


def check_answers(model, processor) -> None:
    """Greedy tokens and text through the chat template and mlx-vlm's own loop."""
    for name in IMAGE_NAMES:
        for index, prompt in enumerate(PROMPTS):
            golden = GOLDENS["generate"]["hf"][name][index]
            text = apply_chat_template(processor, model.config, prompt["message"], num_images=1)
            assert text == prompt["prompt"]
            result = generate(
                model, processor, text, [image_path(name)], max_tokens=GOLDENS["new_tokens"]
            )
            assert result.token_ids == golden["tokens"]
            assert result.text == golden["text"]


def check_bf16(model, processor) -> None:
    """Outputs in bfloat16 are as close to the float32 reference as PyTorch's in bfloat16.

    PyTorch's deviation is stored next to the goldens. The factors allow for a
    different order of roundings: they are above the largest ratios measured on three
    sets of random weights (1.29 for the rms, 1.48 for the maximum) and far below what
    a defect costs.
    """
    deviations = {"dino": [], "siglip": [], "projector": [], "logits_last": []}
    for name in IMAGE_NAMES:
        for kind, value in features(model, processor, name).items():
            reference = ARRAYS[f"hf/{kind}/{name}"]
            deviations[kind].append((value - reference) / reference.std())
        for index, prompt in enumerate(PROMPTS):
            value = logits(model, processor, name, prompt["prompt"])[-1]
            deviations["logits_last"].append(value - ARRAYS[f"hf/logits_last/{name}/{index}"])
    for kind, values in deviations.items():
        theirs = BF16_ERRORS["overall"][kind]
        ours = np.concatenate([value.ravel() for value in values])
        assert np.sqrt(np.mean(ours**2)) <= 1.5 * theirs["rms"], kind
        assert np.abs(ours).max() <= 2 * theirs["max"], kind
