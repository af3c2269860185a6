"""The members: real ids, towers, projectors, decoders and prompts in small dimensions.

The ids are those of published models, so that every setting is read as from a real checkpoint.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tower:
    """One tower and the file from which a native checkpoint reads it.

    Attributes:
        name: ``dino``, ``siglip``, ``clip`` or ``in1k``.
        timm_id: timm's name of the model.
        native_act, hf_act: timm's ``act_layer`` in both forms; None for the exact GELU.
        width, depth: dimensions.
        hub_grid: side of the position grid in the file; 0 for the grid that is used.
        layout: of the file: ``timm``, ``trunk`` (timm inside open_clip) or ``open_clip``.
    """

    name: str
    timm_id: str
    width: int
    depth: int
    native_act: str | None = None
    hf_act: str | None = None
    hub_grid: int = 0
    layout: str = "timm"


@dataclass(frozen=True)
class Member:
    """One data set.

    Attributes:
        px: side of the pictures.
        trained_towers: whether the checkpoint contains towers (in float32).
        has_hf: whether an HF-converted form exists (not for linear projectors).
        sample: distance of the pixels and patches that are kept.
    """

    model_id: str
    vision_backbone_id: str
    arch_specifier: str
    image_resize_strategy: str
    llm_backbone_id: str
    prompt: str
    decoder: str
    text: dict
    towers: tuple[Tower, ...]
    px: int
    trained_towers: bool = False
    has_hf: bool = True
    sample: int = 1


DINO = "vit_large_patch14_reg4_dinov2.lvd142m"
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}
MISTRAL = {
    **LLAMA,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
}

MEMBERS = {
    "clip": Member(
        model_id="one-stage+7b",
        vision_backbone_id="clip-vit-l-336px",
        arch_specifier="no-align+gelu-mlp",
        image_resize_strategy="letterbox",
        llm_backbone_id="vicuna-v15-7b",
        prompt="vicuna",
        decoder="llama",
        text=LLAMA,
        towers=(
            Tower(
                "clip",
                "vit_large_patch14_clip_336.openai",
                width=48,
                depth=4,
                native_act="quick_gelu",
                hf_act="quick_gelu",
                layout="open_clip",
            ),
        ),
        px=42,
    ),
    "in1k": Member(
        model_id="in1k-224px+7b",
        vision_backbone_id="in1k-vit-l",
        arch_specifier="no-align+linear",
        image_resize_strategy="resize-crop",
        llm_backbone_id="llama2-7b-chat",
        prompt="llama2-chat",
        decoder="llama",
        text=LLAMA,
        towers=(
            Tower(
                "in1k",
                "vit_large_patch16_224.augreg_in21k_ft_in1k",
                width=32,
                depth=3,
            ),
        ),
        px=48,
        has_hf=False,
    ),
    "dinoclip": Member(
        model_id="dinoclip-336px-letterbox+7b",
        vision_backbone_id="dinoclip-vit-l-336px",
        arch_specifier="no-align+fused-gelu-mlp",
        image_resize_strategy="letterbox",
        llm_backbone_id="mistral-v0.1-7b-instruct",
        prompt="mistral-instruct",
        decoder="mistral",
        text=MISTRAL,
        towers=(
            Tower("dino", DINO, width=32, depth=3, hub_grid=5),
            Tower(
                "clip",
                "vit_large_patch14_clip_336.openai",
                width=48,
                depth=4,
                hf_act="quick_gelu",
            ),
        ),
        px=42,
    ),
    "siglip384": Member(
        model_id="prism-siglip+13b",
        vision_backbone_id="siglip-vit-so400m-384px",
        arch_specifier="no-align+gelu-mlp",
        image_resize_strategy="resize-naive",
        llm_backbone_id="llama2-13b-pure",
        prompt="pure",
        decoder="llama",
        text={**LLAMA, "hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 5},
        towers=(
            Tower(
                "siglip",
                "vit_so400m_patch14_siglip_384",
                width=32,
                depth=3,
                layout="trunk",
            ),
        ),
        px=384,
        sample=27,
    ),
    "dino": Member(
        model_id="dinov2-224px+7b",
        vision_backbone_id="dinov2-vit-l",
        arch_specifier="no-align+gelu-mlp",
        image_resize_strategy="letterbox",
        llm_backbone_id="vicuna-v15-7b",
        prompt="vicuna",
        decoder="llama",
        text=LLAMA,
        towers=(Tower("dino", DINO, width=32, depth=3),),
        px=42,
        trained_towers=True,
    ),
}
