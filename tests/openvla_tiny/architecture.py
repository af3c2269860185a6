"""OpenVLA's architecture in small sizes, and the source checkpoint's config.json.

Towers and projector have moxin-tiny's widths, since training starts from its weights; each tower
has one block less. The decoder is Llama's, with as many key-value heads as query heads.
"""

from typing import Any

from mlx_vlm.models.moxin import ModelConfig
from moxin_tiny.architecture import IMAGE_SIZE, NUM_PATCHES, PATCH_SIZE, SIGLIP_MLP, WIDTH
from moxin_tiny.architecture import source_config as moxin_source_config

from .actions import statistics
from .texts import ACTION_TOKENS, VOCAB_MULTIPLE

__all__ = ["IMAGE_SIZE", "NUM_PATCHES", "model_config", "source_config"]

DEPTH = 4
HIDDEN = 128
INTERMEDIATE = 192


def text_config(pad_token_id: int) -> dict[str, Any]:
    """The decoder's ``text_config``; missing settings have the library's defaults."""
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "pad_token_id": pad_token_id,
        "torch_dtype": "bfloat16",
        "vocab_size": pad_token_id + VOCAB_MULTIPLE,
    }


def model_config(pad_token_id: int) -> ModelConfig:
    """The model built for training, without a checkpoint."""
    tower = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 16}
    dino = {
        "intermediate_size": 4 * WIDTH,
        "num_register_tokens": 4,
        "class_token": True,
        "layer_scale": True,
    }
    return ModelConfig.from_dict(
        {
            "model_type": "moxin",
            "pad_token_id": pad_token_id,
            "text_config": text_config(pad_token_id),
            "vision_config": {
                "image_size": IMAGE_SIZE,
                "patch_size": PATCH_SIZE,
                "dino": {**tower, **dino},
                "siglip": {**tower, "intermediate_size": SIGLIP_MLP},
            },
            "projector_config": {
                "input_size": 2 * WIDTH,
                "intermediate_size": 8 * WIDTH,
                "output_size": HIDDEN,
            },
        }
    )


def source_config(pad_token_id: int, space_token_id: int) -> dict[str, Any]:
    """config.json of an OpenVLA checkpoint.

    Args:
        space_token_id: the token that OpenVLA appends to every prompt (29871 in Llama's
            vocabulary).
    """
    return {
        **moxin_source_config(pad_token_id),
        "architectures": ["OpenVLAForActionPrediction"],
        "hf_llm_id": "openvla-tiny",
        "llm_backbone_id": "llama2-7b-pure",
        "model_type": "openvla",
        "n_action_bins": ACTION_TOKENS,
        "norm_stats": statistics(),
        "pad_to_multiple_of": VOCAB_MULTIPLE,
        "text_config": text_config(pad_token_id),
        "action_config": {"append_token_id": space_token_id},
    }
