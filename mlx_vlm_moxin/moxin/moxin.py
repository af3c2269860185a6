"""Moxin-7B VLM: the picture's projected features replace its placeholders' embeddings."""

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..base import InputEmbeddingsFeatures, LanguageModelOutput
from .action_head import L1ActionHead, ProprioProjector
from .config import ModelConfig
from .language import LanguageModel
from .projector import make_projector
from .vision import VisionModel
from .weights import check_weights, convert_weights


def merge_image_features(
    inputs_embeds: mx.array, image_features: mx.array, is_image: mx.array
) -> mx.array:
    """Replace the embeddings of image placeholders by image features, in order.

    Args:
        inputs_embeds: ``[B, T, D]``.
        image_features: ``[K, N, D]`` for the first ``K`` rows, in mlx-vlm's order.
        is_image: ``[B, T]``, true at the placeholders. The first ``N`` of a row are the
            picture's; later ones may be such ids in the model's answers.
    """
    rows, count, _ = image_features.shape
    index = mx.cumsum(is_image[:rows].astype(mx.int32), axis=1) - 1
    is_image = is_image[:rows] & (index < count)
    features = mx.take_along_axis(image_features, mx.clip(index, 0, count - 1)[..., None], axis=1)
    merged = mx.where(
        is_image[..., None], features.astype(inputs_embeds.dtype), inputs_embeds[:rows]
    )
    if rows == inputs_embeds.shape[0]:
        return merged
    return mx.concatenate([merged, inputs_embeds[rows:]], axis=0)


class Model(nn.Module):
    """Vision towers, projector and decoder with mlx-vlm's model interface."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model_type = config.model_type
        self.vision_tower = VisionModel(config.vision_config)
        self.multi_modal_projector = make_projector(config.projector_config)
        self.language_model = LanguageModel(config.text_config)
        actions, width = config.action_config, config.text_config.hidden_size
        if actions is not None and actions.head is not None:
            self.action_head = L1ActionHead(width, actions.head_hidden_size, actions.action_dim)
        if actions is not None and actions.proprio_dim is not None:
            self.proprio_projector = ProprioProjector(actions.proprio_dim, width)

    def encode_image(self, pixel_values: mx.array) -> mx.array:
        """Visual tokens ``[B, num_patches, hidden_size]`` of ``pixel_values`` ``[B, C, H, W]``."""
        return self.multi_modal_projector(self.vision_tower(pixel_values))

    def _image_features(
        self,
        pixel_values: mx.array,
        cached_image_features: mx.array | None = None,
        vision_cache: Any | None = None,
        _image_key: str | None = None,
        **kwargs: Any,
    ) -> mx.array:
        """``encode_image``, or the features in one of mlx-vlm's two feature caches."""
        if cached_image_features is not None:
            return cached_image_features
        if vision_cache is None or _image_key is None:
            return self.encode_image(pixel_values)
        features = vision_cache.get(_image_key)
        if features is None:
            features = self.encode_image(pixel_values)
            mx.eval(features)
            vision_cache.put(_image_key, features)
        return features

    def engine_embeddings(
        self, input_ids: mx.array, image_features: Callable[[], mx.array] | None
    ) -> mx.array | None:
        """Embeddings of text and pictures from accelerated functions; None where there are none.

        There are none in plain MLX; as ``LanguageModel.engine_logits``.

        Args:
            image_features: records the pictures' visual tokens; None without pictures.
        """
        return None

    def get_input_embeddings(
        self,
        input_ids: mx.array,
        pixel_values: mx.array | None = None,
        mask: mx.array | None = None,
        **kwargs: Any,
    ) -> InputEmbeddingsFeatures:
        """Embeddings ``[B, T, hidden_size]`` of text and, if given, pictures.

        Nothing is checked here: an exception would end every request that the server
        has in flight. The processor refuses bad input.
        """
        features = None
        if pixel_values is not None:
            features = functools.partial(self._image_features, pixel_values, **kwargs)
        inputs_embeds = self.engine_embeddings(input_ids, features)
        if inputs_embeds is None:
            inputs_embeds = self.language_model.model.embed_tokens(input_ids)
            if features is not None:
                is_image = input_ids >= self.config.image_token_index
                inputs_embeds = merge_image_features(inputs_embeds, features(), is_image)
        return InputEmbeddingsFeatures(inputs_embeds=inputs_embeds)

    def __call__(
        self,
        input_ids: mx.array,
        pixel_values: mx.array | None = None,
        mask: mx.array | None = None,
        cache: list | None = None,
        **kwargs: Any,
    ) -> LanguageModelOutput:
        """Logits ``[B, T, vocab_size]`` for ``input_ids`` ``[B, T]`` with ``mask`` ``[B, T]``."""
        features = self.get_input_embeddings(input_ids, pixel_values, mask, **kwargs)
        return self.language_model(
            input_ids, inputs_embeds=features.inputs_embeds, mask=mask, cache=cache
        )

    def chunked_prefill_policy(self, **kwargs: Any) -> bool:
        """As the decoder's; mlx-vlm checks either."""
        return self.language_model.chunked_prefill_policy(**kwargs)

    def decode_token(self, token: mx.array, cache: list) -> LanguageModelOutput:
        """One step of a hand-written generation loop: the next token of each row.

        Args:
            token: ids ``[B]`` or ``[B, 1]``.
            cache: key-value caches with the prompt, one per layer
                (``mlx_vlm.models.cache.make_prompt_cache(model.language_model)`` makes
                them, ``model(input_ids, pixel_values, cache=cache)`` fills them).

        Returns:
            ``logits`` ``[B, 1, vocab_size]``.
        """
        return self.language_model(token.reshape(-1, 1), cache=cache)

    def quantize(self, group_size: int = 64, bits: int = 8, mode: str = "affine") -> "Model":
        """Quantise the decoder in place: the layers that ``quant_predicate`` selects and that fit.

        A layer's original weights are freed before the next layer is computed. Layers that are
        already quantised are unchanged, and so is a layer whose input width is no multiple of
        ``group_size``, as in ``mlx_vlm.convert``.

        Args:
            group_size: weights that share a scale.
            bits: width of a weight.
            mode: one of ``mx.quantize``'s.

        Returns:
            The model itself.

        Raises:
            ValueError: if MLX does not support these settings, or if they fit no layer.
        """

        def fits(path: str, module: nn.Module) -> bool:
            is_chosen = hasattr(module, "to_quantized") and self.quant_predicate(path, module)
            return is_chosen and module.weight.shape[-1] % group_size == 0

        if not any(fits(path, module) for path, module in self.named_modules()):
            raise ValueError(
                f"No layer can be quantised with group size {group_size}: all are quantised "
                "already, or their input widths are no multiples of it"
            )
        nn.quantize(self, group_size, bits, mode=mode, class_predicate=fits)
        for part in [*self.layers, self.language_model]:
            mx.eval(part.parameters())
            mx.clear_cache()
        return self

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Source or converted weights, all or some, with this model's names and layout.

        Unused ones are dropped. Running it on its result changes nothing.
        """
        return convert_weights(weights, self.config.vision_config)

    def load_weights(
        self, file_or_weights: str | list[tuple[str, mx.array]], strict: bool = True
    ) -> nn.Module:
        """``nn.Module.load_weights`` with one line of error for a truncated checkpoint.

        MLX names every missing tensor, possibly hundreds, and mlx-vlm sets a part of the model
        without any weights to None.

        Args:
            file_or_weights: a safetensors file, or names and arrays.
            strict: whether all parameters, and no others, must be given.

        Raises:
            ValueError: naming tensors that are missing, unknown or of a wrong shape.
        """
        if strict and not isinstance(file_or_weights, str):
            is_whole = None not in (self.vision_tower, self.multi_modal_projector)
            check_weights(dict(file_or_weights), self if is_whole else Model(self.config))
        return super().load_weights(file_or_weights, strict)

    def quant_predicate(self, path: str, module: nn.Module) -> bool:
        """Quantise the decoder's attention, MLP and ``lm_head``; nothing else.

        Token embeddings are not: they are read one row at a time, so quantising them saves size
        but no time. Towers and projector are 8.6 % of the weights, run once
        per picture, and SigLIP's MLP width (4304) fits no group size.
        """
        return path.startswith("language_model.") and "embed_tokens" not in path

    def shard(self, group: mx.distributed.Group | None = None) -> None:
        """Split the decoder over ``group``; every process has the whole towers."""
        self.language_model.shard(group)

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder's layers."""
        return self.language_model.layers
