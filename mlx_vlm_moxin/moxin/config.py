"""Configuration of Moxin: two vision towers, a projector, a Mistral decoder.

Two kinds of ``config.json`` arrive here: our own (``model_type: moxin``, complete) and
that of an HF-converted Prismatic checkpoint (``model_type: prismatic``), which names
only timm model ids and the few text settings that differ from the library's defaults.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..base import BaseModelConfig

# What ``model_type`` of config.json may be: ours, and that of HF-converted Prismatic checkpoints.
MODEL_TYPES = ("moxin", "prismatic")


def _require_positive(owner: str, config: Any, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise ValueError(
                f"config.json: {owner}.{name} must be a positive number, got {value!r}"
            )


@dataclass
class TextConfig(BaseModelConfig):
    """The decoder, under the names that ``mlx_vlm.models.llama`` reads.

    Defaults are those of transformers' ``MistralConfig``, since HF-converted
    checkpoints leave out what equals them (``rms_norm_eps`` is then 1e-6).
    ``max_position_embeddings`` is the exception: it is the value in the language
    model's own config, sets nothing in the arithmetic and is what the server reports.
    """

    model_type: str = "mistral"
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    intermediate_size: int = 14336
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    vocab_size: int = 32000
    max_position_embeddings: int = 32768
    rope_theta: float = 10000.0
    rope_traditional: bool = False
    rope_scaling: dict | None = None
    rope_parameters: dict | None = None
    sliding_window: int | None = 4096
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    layer_types: list[str] | None = None

    def __post_init__(self):
        if self.model_type != "mistral" or self.hidden_act != "silu":
            raise ValueError(
                "config.json: Moxin's decoder is model_type 'mistral' with hidden_act "
                f"'silu', got {self.model_type!r} with {self.hidden_act!r}"
            )
        # transformers 5 writes rope_parameters where version 4 wrote rope_theta.
        if self.rope_parameters:
            self.rope_theta = self.rope_parameters.get("rope_theta", self.rope_theta)
            if self.rope_parameters.get("rope_type", "default") != "default":
                self.rope_scaling = self.rope_parameters
        _require_positive(
            "text_config",
            self,
            ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
            + ("num_key_value_heads", "rms_norm_eps", "vocab_size", "rope_theta"),
        )
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"config.json: text_config.num_attention_heads {self.num_attention_heads} is "
                f"no multiple of num_key_value_heads {self.num_key_value_heads}"
            )
        # The window is applied in language.py; every layer keeps the full cache.
        self.layer_types = ["full_attention"] * self.num_hidden_layers


@dataclass
class TowerConfig(BaseModelConfig):
    """One timm vision transformer.

    ``num_hidden_layers`` counts the blocks of the pretrained tower. Moxin's features
    leave after block ``num_hidden_layers - 2``, so one block less is built.
    """

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    num_register_tokens: int = 0
    class_token: bool = False
    layer_scale: bool = False
    layer_norm_eps: float = 1e-6

    def __post_init__(self):
        _require_positive(
            "vision_config",
            self,
            ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        )
        if self.hidden_size % self.num_attention_heads or self.num_hidden_layers < 2:
            raise ValueError(
                "config.json: a vision tower needs at least 2 layers and a hidden_size that is a "
                f"multiple of num_attention_heads, got {self}"
            )

    @property
    def num_blocks(self) -> int:
        """Blocks that are built and run."""
        return self.num_hidden_layers - 1

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens in front of the patch tokens."""
        return self.num_register_tokens + int(self.class_token)


# timm 0.9.16, timm/models/vision_transformer.py; SigLIP's MLP is int(3.7362 * 1152).
TIMM_TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": TowerConfig(
        num_register_tokens=4, class_token=True, layer_scale=True
    ),
    "vit_so400m_patch14_siglip_224": TowerConfig(
        hidden_size=1152, num_hidden_layers=27, intermediate_size=4304
    ),
}
DINO_ID, SIGLIP_ID = TIMM_TOWERS


@dataclass
class VisionConfig(BaseModelConfig):
    """Both towers; they see the same square picture, normalised in two ways."""

    model_type: str = "moxin_vision"
    image_size: int = 224
    patch_size: int = 14
    dino: TowerConfig = field(default_factory=lambda: replace(TIMM_TOWERS[DINO_ID]))
    siglip: TowerConfig = field(default_factory=lambda: replace(TIMM_TOWERS[SIGLIP_ID]))

    def __post_init__(self):
        _require_positive("vision_config", self, ("image_size", "patch_size"))
        if self.image_size % self.patch_size:
            raise ValueError(
                f"config.json: vision_config.image_size {self.image_size} is no multiple of "
                f"patch_size {self.patch_size}"
            )
        if isinstance(self.dino, dict):
            self.dino = TowerConfig.from_dict(self.dino)
        if isinstance(self.siglip, dict):
            self.siglip = TowerConfig.from_dict(self.siglip)

    @property
    def num_patches(self) -> int:
        """Visual tokens per picture."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def hidden_size(self) -> int:
        """Width of the fused features: both towers' channels, concatenated."""
        return self.dino.hidden_size + self.siglip.hidden_size


@dataclass
class ProjectorConfig(BaseModelConfig):
    """The fused MLP projector: ``input_size -> intermediate_size -> output_size`` twice."""

    model_type: str = "fused-gelu-mlp"
    input_size: int = 2176
    intermediate_size: int = 8704
    output_size: int = 4096

    def __post_init__(self):
        _require_positive(
            "projector_config", self, ("input_size", "intermediate_size", "output_size")
        )


def _check_prismatic(params: dict) -> None:
    """Refuse a Prismatic config that is not Moxin-like, saying what was found."""
    text_config = params.get("text_config") or {}
    found = {
        "timm_model_ids": params.get("timm_model_ids"),
        "arch_specifier": params.get("arch_specifier"),
        "llm_backbone_id": params.get("llm_backbone_id"),
        "text_config.model_type": text_config.get("model_type"),
    }
    supported = (
        found["timm_model_ids"] == [DINO_ID, SIGLIP_ID]
        and str(found["arch_specifier"]).endswith("fused-gelu-mlp")
        and str(found["llm_backbone_id"]).endswith("-pure")
        and found["text_config.model_type"] == "mistral"
    )
    if not supported:
        raise ValueError(
            f"This Prismatic checkpoint is not supported: its config.json has {found}. "
            f"Supported: timm_model_ids {[DINO_ID, SIGLIP_ID]}, arch_specifier "
            "'*fused-gelu-mlp', llm_backbone_id '*-pure', text_config.model_type 'mistral'."
        )


@dataclass
class ModelConfig(BaseModelConfig):
    """The whole model.

    Attributes:
        pad_token_id: ``<PAD>``, the first id above the tokenizer's own vocabulary.
        image_token_index: first of the reserved ids above ``<PAD>`` that stand for
            visual tokens in ``input_ids`` (see ``processing_moxin.py``).
        timm_model_ids: set by Prismatic configs, whose sizes follow from the weights.
        model_path: set by mlx-vlm before it builds the model.
    """

    text_config: TextConfig = field(default_factory=TextConfig)
    vision_config: VisionConfig = field(default_factory=VisionConfig)
    projector_config: ProjectorConfig = field(default_factory=ProjectorConfig)
    model_type: str = "moxin"
    pad_token_id: int = 32000
    image_token_index: int | None = None
    bos_token_id: int = 1
    eos_token_id: int = 2
    image_sizes: list[int] | None = None
    timm_model_ids: list[str] | None = None
    model_path: str | None = None

    def __post_init__(self):
        for name, kind in (
            ("text_config", TextConfig),
            ("vision_config", VisionConfig),
            ("projector_config", ProjectorConfig),
        ):
            value = getattr(self, name)
            if isinstance(value, dict):
                setattr(self, name, kind.from_dict(value))
        if self.image_token_index is None:
            self.image_token_index = self.pad_token_id + 1
        if not self.pad_token_id < self.image_token_index < self.text_config.vocab_size - 1:
            raise ValueError(
                "config.json: at least two ids above pad_token_id must be free for visual tokens, "
                f"got pad_token_id {self.pad_token_id}, image_token_index "
                f"{self.image_token_index}, vocab_size {self.text_config.vocab_size}"
            )

    @classmethod
    def from_dict(cls, params: dict) -> "ModelConfig":
        """Build from ``config.json``; a Prismatic config is checked first.

        Raises:
            ValueError: what is missing, out of range or not supported.
        """
        if params.get("model_type") == "prismatic":
            _check_prismatic(params)
        missing = [name for name in ("text_config", "pad_token_id") if not params.get(name)]
        if missing:
            raise ValueError(f"config.json: {' and '.join(missing)} missing")
        return super().from_dict(params)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, ready for ``json``."""
        return asdict(self)
