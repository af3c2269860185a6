"""A member's files: native run, tower files, language model, HF-converted checkpoint."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from ..layouts import read_json, write_json
from .model import State, Weights
from .specs import Member

# Prismatic's nn.Sequential: the linear layers at 0, 2 and 4; a linear projector has no number.
_NATIVE_LAYERS = {"fc1": "projector.0", "fc2": "projector.2", "fc3": "projector.4"}
# timm's names -> open_clip's, as timm reads them.
_OPEN_CLIP = {
    "patch_embed.proj": "conv1",
    "pos_embed": "positional_embedding",
    "cls_token": "class_embedding",
    "blocks.": "transformer.resblocks.",
    "norm_pre": "ln_pre",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "norm1": "ln_1",
    "norm2": "ln_2",
}


def _open_clip(state: State) -> State:
    renamed = {}
    for name, value in state.items():
        if name.startswith("norm."):
            name = name.replace("norm.", "ln_post.")
        for timms, theirs in _OPEN_CLIP.items():
            name = name.replace(timms, theirs)
        renamed[f"visual.{name}"] = value.squeeze() if "embedding" in name else value
    width = state["norm.weight"].shape[0]
    extra = {"visual.proj": torch.zeros(width, 8), "logit_scale": torch.ones(())}
    return {**renamed, **extra, "positional_embedding": torch.zeros(7, 8)}


def _tower_file(layout: str, state: State) -> State:
    if layout == "open_clip":
        return _open_clip(state)
    if layout == "trunk":
        trunk = {f"visual.trunk.{name}": value for name, value in state.items()}
        return {**trunk, "logit_scale": torch.ones(())}
    return state


def write_native(directory: Path, member: Member, weights: Weights, template: Path) -> None:
    """``native/`` and ``hub/``; the tokenizer comes from ``template``."""
    model = asdict(member)
    names = ("model_id", "vision_backbone_id", "arch_specifier", "image_resize_strategy")
    settings = {name: model[name] for name in (*names, "llm_backbone_id")}
    (directory / "native/checkpoints").mkdir(parents=True)
    run = {"model": {**settings, "llm_max_length": 2048}, "stage": "finetune"}
    write_json(directory / "native/config.json", run)
    projector = {}
    for name, value in weights.projector.items():
        layer, kind = name.split(".")
        native = "projector" if len(weights.projector) == 2 else _NATIVE_LAYERS[layer]
        projector[f"{native}.{kind}"] = value
    parts = {
        "projector": projector,
        "llm_backbone": {f"llm.{name}": value for name, value in weights.language_model.items()},
    }
    if member.trained_towers:
        parts = {part: {k: v.float() for k, v in state.items()} for part, state in parts.items()}
        parts["vision_backbone"] = {
            (f"{tower.name}_" if len(member.towers) > 1 else "") + f"featurizer.{name}": value
            for tower, state in zip(member.towers, weights.towers)
            for name, value in state.items()
        }
    torch.save({"model": parts}, directory / "native/checkpoints/latest-checkpoint.pt")
    shutil.copytree(template / "hub/llm", directory / "hub/llm")
    llm = {
        **member.text,
        "model_type": member.decoder,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": 512,
        "tie_word_embeddings": False,
    }
    write_json(directory / "hub/llm/config.json", llm)
    if not member.trained_towers:
        for tower, state in zip(member.towers, weights.towers):
            file = {k: v.contiguous() for k, v in _tower_file(tower.layout, state).items()}
            save_file(file, directory / f"hub/{tower.name}.safetensors", {"format": "pt"})


def preprocessor(member: Member, towers: list[Any]) -> dict[str, Any]:
    """preprocessor_config.json as OpenVLA's converter writes it, constants in bfloat16."""
    data = [timm.data.resolve_model_data_config(tower) for tower in towers]
    size, count = member.px, len(towers)
    is_naive = member.image_resize_strategy == "resize-naive"
    is_letterbox = member.image_resize_strategy == "letterbox"

    def rounded(values: Any) -> list[float]:
        return torch.tensor(values).to(torch.bfloat16).tolist()

    return {
        "image_processor_type": "PrismaticImageProcessor",
        "use_fused_vision_backbone": count > 1,
        "image_resize_strategy": member.image_resize_strategy,
        "input_sizes": [[3, size, size]] * count,
        "interpolations": ["bicubic"] * count,
        "means": [[*each["mean"]] for each in data],
        "stds": [[*each["std"]] for each in data],
        "tvf_resize_params": [
            {
                "size": [size, size] if is_naive else size,
                "interpolation": 3,
                "max_size": None,
                "antialias": True,
            }
        ]
        * count,
        "tvf_crop_params": [{"output_size": [size, size]}] * count,
        "tvf_normalize_params": [
            {"mean": rounded(each["mean"]), "std": rounded(each["std"]), "inplace": False}
            for each in data
        ],
        "tvf_do_letterbox": is_letterbox,
        # One colour for all towers: the last one's.
        "tvf_letterbox_fill": (
            [int(channel * 255) for channel in data[-1]["mean"]] if is_letterbox else None
        ),
    }


def write_hf(
    directory: Path, member: Member, weights: Weights, towers: list[Any], template: Path
) -> None:
    """``hf/`` in bfloat16, its towers resampled; the tokenizer comes from ``template``."""
    tensors = ("*.safetensors", "*.index.json")
    shutil.copytree(template / "hf", directory / "hf", ignore=shutil.ignore_patterns(*tensors))
    prefixes = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
    state = {
        prefix + name.replace("gamma", "scale_factor"): value
        for prefix, tower in zip(prefixes, towers)
        for name, value in tower.state_dict().items()
    }
    state |= {f"projector.{name}": value for name, value in weights.projector.items()}
    state |= {f"language_model.{name}": value for name, value in weights.language_model.items()}
    state = {name: value.to(torch.bfloat16).contiguous() for name, value in state.items()}
    save_file(state, directory / "hf/model.safetensors", {"format": "pt"})
    known = read_json(template / "hf/config.json")
    text = {k: v for k, v in member.text.items() if k != "max_position_embeddings"}
    config = {
        "model_type": "prismatic",
        "architectures": known["architectures"],
        "arch_specifier": member.arch_specifier,
        "image_resize_strategy": member.image_resize_strategy,
        "image_sizes": [member.px] * len(towers),
        "llm_backbone_id": member.llm_backbone_id,
        "llm_max_length": 2048,
        "pad_to_multiple_of": 64,
        "pad_token_id": known["pad_token_id"],
        "text_config": {
            **text,
            "model_type": member.decoder,
            "pad_token_id": known["pad_token_id"],
            "torch_dtype": "bfloat16",
            "vocab_size": known["text_config"]["vocab_size"],
        },
        "timm_model_ids": [tower.timm_id for tower in member.towers],
        "timm_override_act_layers": [tower.hf_act for tower in member.towers],
        "torch_dtype": "bfloat16",
        "use_fused_vision_backbone": len(towers) > 1,
        "vision_backbone_id": member.vision_backbone_id,
    }
    write_json(directory / "hf/config.json", config)
    write_json(directory / "hf/preprocessor_config.json", preprocessor(member, towers))
