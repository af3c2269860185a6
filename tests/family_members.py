"""Small members of the Prismatic family, and comparisons with their PyTorch reference."""

import json
from functools import cached_property
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_vlm import apply_chat_template, generate
from support import FEATURES_TOLERANCE, REFERENCE, image_path

from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.conversion.convert import convert
from mlx_vlm_moxin.conversion.source_files import SourceFiles

FAMILY = REFERENCE / "family"
MEMBERS = ("clip", "in1k", "dinoclip", "siglip384", "dino")
IMAGES = ("photo", "tall")
LOGITS_TOLERANCE = 2e-4
AS_STORED = QuantizeOptions()
# (member, form): a linear projector has no HF-converted form.
FORMS = [(m, f) for m in MEMBERS for f in ("native", "hf") if (FAMILY / m / f).is_dir()]


def native_files(member: str) -> SourceFiles:
    """The native run of a member, with the files that belong to it."""
    directory = FAMILY / member
    towers = {file.stem: str(file) for file in (directory / "hub").glob("*.safetensors")}
    return SourceFiles(str(directory / "native"), llm=str(directory / "hub" / "llm"), **towers)


def source_files(member: str, form: str) -> SourceFiles:
    """A member in one of its forms."""
    return native_files(member) if form == "native" else SourceFiles(str(FAMILY / member / form))


def converted(
    member: str, form: str, directory: Path, options: QuantizeOptions = AS_STORED
) -> Path:
    """The directory of a finished conversion."""
    return convert(source_files(member, form), directory, options, quiet=True).directory


class Reference:
    """PyTorch's outputs for a member in one of its forms."""

    def __init__(self, member: str, form: str):
        self.directory, self.form = FAMILY / member, form

    @cached_property
    def goldens(self) -> dict:
        return json.loads((self.directory / "goldens.json").read_text(encoding="utf-8"))

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        arrays = np.load(self.directory / "goldens.npz")
        prefix = f"{self.form}/"
        return {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}

    def check_pixels(self, processor) -> None:
        step = self.goldens["sample"]
        for name in IMAGES:
            pixels = processor.image_processor(image_path(name))[0]
            np.testing.assert_array_equal(pixels[:, ::step, ::step], self.arrays[f"pixels/{name}"])

    def check_features(self, model, processor) -> None:
        """Towers and projector, in standard deviations of the reference."""
        step = self.goldens["sample"]
        for name in IMAGES:
            pixels = mx.array(processor.image_processor(image_path(name)))
            outputs = {
                "features": model.vision_tower(pixels),
                "projector": model.encode_image(pixels),
            }
            for kind, value in outputs.items():
                expected = self.arrays[f"{kind}/{name}"]
                np.testing.assert_allclose(
                    np.array(value[0, ::step]),
                    expected,
                    rtol=0,
                    atol=FEATURES_TOLERANCE * expected.std(),
                )

    def check_logits(self, model, processor) -> None:
        """All prompts at the last position; the first one at every few positions."""
        for name in IMAGES:
            for index, prompt in enumerate(self.goldens["prompts"]):
                inputs = processor(prompt["prompt"], [image_path(name)])
                logits = model(inputs["input_ids"], inputs["pixel_values"]).logits[0]
                pairs = [(logits[-1], f"logits_last/{name}/{index}")]
                if f"logits/{name}/{index}" in self.arrays:
                    pairs.append((logits[:: self.goldens["logits_step"]], f"logits/{name}/{index}"))
                for value, key in pairs:
                    np.testing.assert_allclose(
                        np.array(value), self.arrays[key], rtol=0, atol=LOGITS_TOLERANCE
                    )

    def check_prompts(self, processor, config) -> None:
        """Chat template and token ids of conversations of one and two turns."""
        roles = ("user", "assistant")
        for prompt in self.goldens["prompts"]:
            turns = [
                {"role": roles[index % 2], "content": text}
                for index, text in enumerate(prompt["messages"])
            ]
            text = apply_chat_template(processor, config, turns, num_images=1)
            assert text == prompt["prompt"]
            ids = processor(text, [image_path("photo")])["input_ids"][0].tolist()
            is_text = [token for token in ids if token <= config.pad_token_id]
            assert is_text == prompt["input_ids"]
            assert len(ids) - len(is_text) == config.vision_config.num_patches

    def check_answers(self, model, processor) -> None:
        """Greedy tokens through mlx-vlm's loop."""
        for answer in self.goldens["generate"][self.form]:
            prompt = self.goldens["prompts"][answer["prompt"]]["prompt"]
            result = generate(
                model,
                processor,
                prompt,
                [image_path(answer["image"])],
                max_tokens=len(answer["tokens"]),
            )
            assert result.token_ids == answer["tokens"]
