"""Random checkpoints of other models, in their published layouts."""

import json
import wave
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SAMPLING_RATE = 16000


def save_tokenizer(directory: Path, special_tokens: list[str]) -> PreTrainedTokenizerFast:
    """One token per byte, then the special ones."""
    tokenizer = Tokenizer(BPE({byte: i for i, byte in enumerate(BYTES)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special_tokens)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special_tokens[0])
    fast.save_pretrained(directory)
    return fast


def letters_only(weight: mx.array) -> mx.array:
    """An output head ``[V, D]`` that generates a to z only, so answers are text without an end."""
    is_letter = [int("a" <= byte <= "z") for byte in BYTES] + [0] * (weight.shape[0] - len(BYTES))
    return weight * mx.array(is_letter)[:, None]


def save(directory: Path, config: dict, weights: dict[str, mx.array]) -> None:
    (directory / "config.json").write_text(json.dumps(config))
    weights = {name: value.astype(mx.bfloat16) for name, value in weights.items()}
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "pt"})


def write_qwen3_asr(directory: Path) -> Path:
    """Qwen3-ASR: an audio encoder and a Qwen3 decoder, both under ``thinker.``."""
    from mlx_audio.stt.models.qwen3_asr import Model, ModelConfig

    directory.mkdir()
    special = ["<|im_end|>", "<|im_start|>", "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>"]
    special += ["<asr_text>"]
    tokenizer = save_tokenizer(directory, special)
    WhisperFeatureExtractor(feature_size=128).save_pretrained(directory)
    thinker = {
        "model_type": "qwen3_asr",
        "audio_config": {
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "d_model": 64,
            "output_dim": 128,
            "downsample_hidden_size": 32,
        },
        "text_config": {
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
        },
        "audio_token_id": tokenizer.convert_tokens_to_ids("<|audio_pad|>"),
        "audio_start_token_id": tokenizer.convert_tokens_to_ids("<|audio_start|>"),
        "audio_end_token_id": tokenizer.convert_tokens_to_ids("<|audio_end|>"),
    }
    config = {"model_type": "qwen3_asr", "thinker_config": thinker}
    mx.random.seed(0)
    weights = dict(tree_flatten(Model(ModelConfig.from_dict(config)).parameters()))
    # This head is tied: it reads what the embedding holds.
    weights["model.embed_tokens.weight"] = letters_only(weights["model.embed_tokens.weight"])
    for name, value in weights.items():
        if "conv2d" in name and value.ndim == 4:
            weights[name] = value.transpose(0, 3, 1, 2)
    save(directory, config, {f"thinker.{name}": value for name, value in weights.items()})
    return directory


def write_glm4_moe(directory: Path) -> Path:
    """GLM4-MoE: one dense layer, then one with shared and routed experts."""
    from mlx_lm.models.glm4_moe import Model, ModelArgs

    directory.mkdir()
    tokenizer = save_tokenizer(directory, ["<|endoftext|>"])
    config = {
        "model_type": "glm4_moe",
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "max_position_embeddings": 512,
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "n_group": 1,
        "head_dim": 32,
        "topk_group": 1,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "routed_scaling_factor": 1.0,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "rope_scaling": None,
        "use_qk_norm": True,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
        "eos_token_id": tokenizer.eos_token_id,
    }
    mx.random.seed(0)
    weights = dict(tree_flatten(Model(ModelArgs.from_dict(config)).parameters()))
    weights["lm_head.weight"] = letters_only(weights["lm_head.weight"])
    for name in list(weights):
        if ".switch_mlp." in name:
            for expert, value in enumerate(weights.pop(name)):
                weights[name.replace("switch_mlp", f"experts.{expert}")] = value
    save(directory, config, weights)
    return directory


def write_sound(path: Path) -> Path:
    """One second of a tone as a WAV file."""
    tone = np.sin(np.arange(SAMPLING_RATE) * 2 * np.pi * 440 / SAMPLING_RATE)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLING_RATE)
        file.writeframes((tone * 20000).astype("<i2").tobytes())
    return path
