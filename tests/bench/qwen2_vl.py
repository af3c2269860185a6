"""Random weights in the sizes of Qwen2-VL-7B, mlx-vlm's own model that is as large as Moxin.

What mlx-vlm's server is measured with. (Its LLaVA would be closer to Moxin, but its processor
fails on every picture with transformers 5.)
"""

import json
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map
from mlx_vlm.models import qwen2_vl
from mlx_vlm.utils import save_weights

VISION = {
    "model_type": "qwen2_vl",
    "depth": 32,
    "embed_dim": 1280,
    "hidden_size": 3584,
    "num_heads": 16,
}
TEXT = {
    "model_type": "qwen2_vl",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
SMALL_VISION = {"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 4}
SMALL_TEXT = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 600,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
}
# The last tokens of the vocabulary.
SPECIALS = ("<|vision_start|>", "<|image_pad|>", "<|video_pad|>")
# A picture of 640 x 480 pixels becomes 18 x 13 visual tokens, about as many as Moxin's 256.
MAX_PIXELS = 256 * 28 * 28
TEMPLATE = (
    "In: {% for part in messages[-1]['content'] %}"
    "{{ '<|vision_start|> <|image_pad|> ' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}\nOut:"
)


def write_qwen2_vl(folder: Path, tokenizer_of_size, small: bool) -> None:
    """A checkpoint in bfloat16 that stock mlx-vlm loads.

    Args:
        folder: is made.
        tokenizer_of_size: function that gives a tokenizer of so many tokens and one more.
        small: tiny sizes.
    """
    vision = {**VISION, **(SMALL_VISION if small else {})}
    text = {**TEXT, **(SMALL_TEXT if small else {})}
    tokens = text["vocab_size"] - len(SPECIALS)
    ids = ("vision_start_token_id", "image_token_id", "video_token_id")
    settings = {
        **text,
        **{name: tokens + index for index, name in enumerate(ids)},
        "vision_config": vision,
        "eos_token_id": [2],
    }
    model = qwen2_vl.Model(
        qwen2_vl.ModelConfig(
            text_config=qwen2_vl.TextConfig(**text),
            vision_config=qwen2_vl.VisionConfig(**vision),
            **{name: settings[name] for name in (*ids, "model_type", "eos_token_id")},
        )
    )
    model.update(
        tree_map(
            lambda each: (0.02 * mx.random.normal(each.shape)).astype(mx.bfloat16),
            model.parameters(),
        )
    )
    folder.mkdir(parents=True)
    save_weights(folder, model)
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = tokenizer_of_size(tokens - 1)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIALS)})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    pixels = {"image_processor_type": "Qwen2VLImageProcessor", "max_pixels": MAX_PIXELS}
    pixels |= {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 3136}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels), encoding="utf-8")
