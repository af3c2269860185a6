"""Moxin's architecture in small sizes, and the source checkpoint's config.json.

Sizes: 112-pixel pictures make 64 visual tokens. Both towers keep the real ones' 16
heads, one unused block after the features and, for SigLIP, timm's MLP ratio. The
decoder's widths are multiples of 128, so that every group size divides them.
"""

from typing import Any

from mlx_vlm.models.moxin import ModelConfig
from mlx_vlm.models.moxin.towers import DINO_ID, SIGLIP_ID

IMAGE_SIZE, PATCH_SIZE = 112, 14
NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
WIDTH = 96
DEPTH = 5
HIDDEN = 128
# timm 0.9.16, vit_so400m_patch14_siglip_224: mlp_ratio 3.7362.
SIGLIP_MLP = int(3.7362 * WIDTH)
PAD_MULTIPLE = 64
RESERVED = 16


def padded_vocab(pad_token_id: int) -> int:
    """The smallest multiple of 64 with at least 16 ids above ``<PAD>``."""
    return -(-(pad_token_id + 1 + RESERVED) // PAD_MULTIPLE) * PAD_MULTIPLE


def text_config(pad_token_id: int) -> dict[str, Any]:
    """The decoder's ``text_config``; missing settings have the library's defaults."""
    return {
        "head_dim": 32,
        "hidden_size": HIDDEN,
        "intermediate_size": 384,
        "model_type": "mistral",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "pad_token_id": pad_token_id,
        "torch_dtype": "bfloat16",
        "vocab_size": padded_vocab(pad_token_id),
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


def source_config(pad_token_id: int) -> dict[str, Any]:
    """config.json of an HF-converted Prismatic checkpoint."""
    return {
        "arch_specifier": "no-align+fused-gelu-mlp",
        "architectures": ["PrismaticForConditionalGeneration"],
        "hf_llm_id": "moxin-org/Moxin-7B-LLM",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [IMAGE_SIZE, IMAGE_SIZE],
        "llm_backbone_id": "moxin-7b-pure",
        "llm_max_length": 2048,
        "model_type": "prismatic",
        "output_projector_states": False,
        "pad_to_multiple_of": PAD_MULTIPLE,
        "pad_token_id": pad_token_id,
        "text_config": text_config(pad_token_id),
        "timm_model_ids": [DINO_ID, SIGLIP_ID],
        "timm_override_act_layers": [None, None],
        "torch_dtype": "bfloat16",
        "use_fused_vision_backbone": True,
        "vision_backbone_id": "dinosiglip-vit-so-224px",
    }
