"""Text and picture to model inputs, and the hook that registers this processor with mlx-vlm.

``input_ids`` are ``<s>``, one placeholder per visual token (see ``prepared_picture.py``), then
the text.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from huggingface_hub import snapshot_download

from ..base import install_auto_processor_patch
from .config import MODEL_TYPES, ModelConfig
from .image_processing_moxin import MoxinImageProcessor
from .image_settings import CONFIG_FILE
from .picture import PictureSource, read_picture
from .prepared_picture import LastPicture, PictureInput, PreparedPicture
from .tokenization_moxin import MoxinDetokenizer, check_tokenizer, load_tokenizer
from .towers import MODELS_BY_NAME
from .validation import read_object


class MoxinProcessor:
    """Tokenizer and image processor with mlx-vlm's processor interface.

    A plain class, because transformers' ``ProcessorMixin`` accepts only its own image
    processors.

    Args:
        image_token_index: first id of the placeholder range.
        vocab_size: end of the placeholder range (the decoder's padded vocabulary).
        num_image_tokens: visual tokens per picture.
    """

    def __init__(
        self,
        image_processor: MoxinImageProcessor,
        tokenizer: Any,
        image_token_index: int,
        vocab_size: int,
        num_image_tokens: int,
    ):
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.image_token_index = image_token_index
        self.vocab_size = vocab_size
        self.num_image_tokens = num_image_tokens
        self._detokenizer = MoxinDetokenizer(tokenizer)
        self._last_picture = LastPicture()

    def __call__(
        self,
        text: str | Sequence[str],
        images: PictureInput | Sequence[PictureInput] | None = None,
        padding: bool = True,
        padding_side: str = "left",
        add_special_tokens: bool = True,
        return_tensors: str = "mlx",
    ) -> dict[str, mx.array]:
        """Model inputs for one or more prompts.

        Args:
            text: prompts, as from the chat template.
            images: pictures for the first ``len(images)`` prompts, one each, in any form that
                ``picture.read_picture`` reads or as ``prepare_picture`` returns them.
            padding, add_special_tokens, return_tensors: accepted for mlx-vlm, without effect:
                rows are always padded to one length, begin with exactly one ``<s>``, and are
                MLX arrays.
            padding_side: ``"left"`` or ``"right"``.

        Returns:
            ``input_ids`` and ``attention_mask`` ``[B, T]`` int32 and, with images,
            ``pixel_values`` ``[len(images), C, S, S]`` float32.

        Raises:
            ValueError: more pictures than prompts, or a picture that cannot be used.
        """
        prompts = [text] if isinstance(text, str) else list(text)
        if images is None:
            images = []
        elif isinstance(images, PreparedPicture) or not isinstance(images, (list, tuple)):
            images = [images]
        if len(images) > len(prompts):
            raise ValueError(
                f"Moxin supports one image per prompt, got {len(images)} images "
                f"for {len(prompts)} prompt{'s' if len(prompts) > 1 else ''}"
            )
        pictures = [
            image if isinstance(image, PreparedPicture) else self.prepare_picture(image)
            for image in images
        ]
        placeholders = [ids for _, ids in pictures] + [[]] * (len(prompts) - len(pictures))
        rows = [self._row(prompt, ids) for prompt, ids in zip(prompts, placeholders)]
        inputs = self._pad(rows, padding_side)
        if pictures:
            inputs["pixel_values"] = mx.concatenate([pixels for pixels, _ in pictures])
            # Evaluated here: another thread may read them, and cannot evaluate this thread's graph.
            mx.eval(inputs["pixel_values"])
        return inputs

    def prepare_picture(self, image: PictureSource) -> PreparedPicture:
        """A picture read and resized, or the last call's result; several threads may call it.

        Raises:
            PictureError: see ``picture.read_picture``.
        """
        return self._last_picture.prepared(read_picture(image), self.image_processor, self._range)

    @property
    def _range(self) -> tuple[int, int, int]:
        """The number of placeholders of a picture, and their range of ids."""
        return self.num_image_tokens, self.image_token_index, self.vocab_size

    def count_tokens(self, prompt: str, num_images: int = 0) -> int:
        """Number of tokens of a prompt; the pictures themselves are not needed."""
        return len(self._row(prompt, [])) + num_images * self.num_image_tokens

    def _row(self, prompt: str, placeholders: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if ids[:1] == [bos]:
            ids = ids[1:]
        return [bos, *placeholders, *ids]

    def _pad(self, rows: list[list[int]], side: str) -> dict[str, mx.array]:
        length = max(map(len, rows))
        ids, mask = [], []
        for row in rows:
            padding = [self.tokenizer.pad_token_id] * (length - len(row))
            ones, zeros = [1] * len(row), [0] * len(padding)
            ids.append(padding + row if side == "left" else row + padding)
            mask.append(zeros + ones if side == "left" else ones + zeros)
        return {
            "input_ids": mx.array(ids, dtype=mx.int32),
            "attention_mask": mx.array(mask, dtype=mx.int32),
        }

    @property
    def detokenizer(self) -> MoxinDetokenizer:
        """The streaming detokenizer that mlx-vlm reads."""
        return self._detokenizer

    @detokenizer.setter
    def detokenizer(self, value: Any) -> None:
        # mlx-vlm assigns one chosen by tokenizer.json. It would print special tokens and
        # fail on ids above <PAD>, so the exact one is kept.
        pass

    @property
    def chat_template(self) -> str:
        """The tokenizer's."""
        return self.tokenizer.chat_template

    def apply_chat_template(self, conversation: list[dict[str, Any]], **kwargs: Any) -> Any:
        """The tokenizer's, with its arguments."""
        return self.tokenizer.apply_chat_template(conversation, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """The tokenizer's, with its arguments."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's, with its arguments."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    @staticmethod
    def clean_output(text: str) -> str:
        """The text that ``mlx_vlm.generate`` returns: the answer without surrounding space."""
        return text.strip()

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write tokenizer, chat template, image processor and processor class."""
        directory = Path(save_directory)
        self.tokenizer.save_pretrained(directory)
        self.image_processor.save_pretrained(directory)
        text = json.dumps({"processor_class": type(self).__name__}, indent=2) + "\n"
        (directory / "processor_config.json").write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "MoxinProcessor":
        """The processor of a checkpoint directory or Hub repository.

        Without a preprocessor_config.json, the resize strategy comes from config.json
        and the constants are timm's.

        Raises:
            FileNotFoundError, ValueError: naming the file that is missing or wrong.
        """
        path = Path(pretrained_model_name_or_path)
        if not path.is_dir():
            patterns = ["*.json", "*.jinja"]
            revision = kwargs.get("revision")
            path = Path(snapshot_download(str(path), revision=revision, allow_patterns=patterns))
        raw_config = read_object(path / "config.json")
        config = ModelConfig.from_dict(raw_config)
        if (path / CONFIG_FILE).is_file():
            image_processor = MoxinImageProcessor.from_dict(read_object(path / CONFIG_FILE))
        else:
            image_processor = MoxinImageProcessor.of_towers(
                [MODELS_BY_NAME[name] for name in config.vision_config.towers],
                image_size=config.vision_config.image_size,
                resize_strategy=raw_config.get("image_resize_strategy", "resize-naive"),
            )
        found, expected = len(image_processor.image_mean), len(config.vision_config.towers)
        if found != expected:
            raise ValueError(
                f"{CONFIG_FILE} is for {found} vision tower{'s' * (found > 1)}, config.json has "
                f"{expected}"
            )
        tokenizer = load_tokenizer(
            path, own_template=config.model_type == "moxin", prompt_format=config.prompt_format
        )
        check_tokenizer(tokenizer, config)
        return cls(
            image_processor,
            tokenizer,
            image_token_index=config.image_token_index,
            vocab_size=config.text_config.vocab_size,
            num_image_tokens=(image_processor.image_size // config.vision_config.patch_size) ** 2,
        )


install_auto_processor_patch(list(MODEL_TYPES), MoxinProcessor)
