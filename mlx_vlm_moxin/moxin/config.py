"""Configuration: one or two vision towers, a projector, a Llama or Mistral decoder.

Two kinds of ``config.json`` arrive here: our own (``model_type: moxin``, complete) and
that of an HF-converted checkpoint (``prismatic`` or ``openvla``), which names only timm
model ids and the few text settings that differ from the library's defaults.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..base import BaseModelConfig
from .action_config import ActionConfig
from .checkpoint import Shapes, check_layout, projector_sizes, tensor_shapes, vision_sizes
from .prismatic import check_supported, projector_kind, prompt_format, tower_models
from .prompts import PROMPT_FORMATS
from .quantization import check_quantization
from .rope import complete_rope
from .validation import CONFIG_FILE, MAX_LAYERS, check_setting, check_settings
from .vision_config import ProjectorConfig, VisionConfig
from .weights import moxin_name

# OpenVLA's training leaves it beside a checkpoint.
STATISTICS_FILE = "dataset_statistics.json"
# What ``model_type`` of config.json may be: that of HF-converted checkpoints, and ours.
SOURCE_TYPES = ("prismatic", "openvla")
MODEL_TYPES = ("moxin", *SOURCE_TYPES)

# Of both decoders in transformers.
DEFAULT_ROPE_THETA = 10000.0
# What transformers' LlamaConfig and MistralConfig have where a text_config is silent.
# max_position_embeddings is the exception: it is the value in the language model's own
# config, sets nothing in the arithmetic and is what the server reports.
LIBRARY_DEFAULTS = {
    "llama": {
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "max_position_embeddings": 4096,
        "sliding_window": None,
    },
    "mistral": {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    },
}


def _rope_settings(
    params: Mapping[str, Any], max_position_embeddings: int | None
) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` of a text_config, complete.

    transformers 5 writes ``rope_parameters`` where version 4 wrote the other two.
    """
    parameters = params.get("rope_scaling") or params.get("rope_parameters") or {}
    scaling = complete_rope(parameters, max_position_embeddings)
    theta = parameters.get("rope_theta")
    if theta is None:
        theta = params.get("rope_theta", DEFAULT_ROPE_THETA)
    return {"rope_theta": theta, "rope_scaling": scaling}


@dataclass
class TextConfig(BaseModelConfig):
    """The decoder, under the names that ``mlx_vlm.models.llama`` reads.

    HF-converted checkpoints leave out what equals the defaults of the library's class, so
    ``rms_norm_eps`` is 1e-6 there. ``from_dict`` knows the defaults of both decoders;
    those of the fields are Mistral's.
    """

    model_type: str = field(default="mistral", metadata={"choices": [*LIBRARY_DEFAULTS]})
    hidden_size: int = 4096
    num_hidden_layers: int = field(default=32, metadata={"high": MAX_LAYERS})
    intermediate_size: int = 14336
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    rms_norm_eps: float = field(default=1e-6, metadata={"high": 1})
    vocab_size: int = 32000
    max_position_embeddings: int = field(default=32768, metadata={"high": 2**31})
    rope_theta: float = DEFAULT_ROPE_THETA
    rope_traditional: bool = False
    rope_scaling: dict | None = None
    rope_parameters: dict | None = None
    sliding_window: int | None = field(default=4096, metadata={"high": 2**31})
    hidden_act: str = field(default="silu", metadata={"choices": ["silu"]})
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    layer_types: list[str] | None = None

    @classmethod
    def from_dict(cls, params: dict[str, Any]) -> "TextConfig":
        """Build from a ``text_config``; what it leaves out is the library's default.

        Raises:
            ValueError: what is out of range or not supported.
        """
        check_settings(cls, params, "text_config")
        defaults = LIBRARY_DEFAULTS[params.get("model_type", "mistral")]
        # The default of max_position_embeddings is no library's: it must not reach the RoPE.
        rope = _rope_settings(params, params.get("max_position_embeddings"))
        return super().from_dict({**defaults, **params, **rope})

    def __post_init__(self):
        check_settings(TextConfig, vars(self), "text_config")
        if self.model_type == "llama":
            # transformers' Llama ignores it.
            self.sliding_window = None
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        vars(self).update(_rope_settings(vars(self), self.max_position_embeddings))
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"config.json: text_config.num_attention_heads {self.num_attention_heads} is "
                f"no multiple of num_key_value_heads {self.num_key_value_heads}"
            )
        if self.tie_word_embeddings:
            raise ValueError(
                "config.json: text_config.tie_word_embeddings is True; supported are models whose "
                "output head has weights of its own"
            )
        if self.head_dim % 2 or not self.head_dim:
            raise ValueError(
                f"config.json: text_config.head_dim must be an even number, got {self.head_dim}"
            )
        # The window is applied in language.py; every layer keeps the full cache.
        self.layer_types = ["full_attention"] * self.num_hidden_layers


@dataclass
class GenerationDefaults:
    """What generation_config.json may say; mlx-vlm generates with it unless told otherwise."""

    eos_token_id: int | list[int] = field(default=2, metadata={"low": 0})
    bos_token_id: int | None = field(default=None, metadata={"low": 0})
    pad_token_id: int | None = field(default=None, metadata={"low": 0})
    do_sample: bool | None = None
    temperature: float | None = field(default=None, metadata={"low": 0, "high": 100})
    top_p: float | None = field(default=None, metadata={"low": 0, "high": 1})
    top_k: int | None = field(default=None, metadata={"low": 0})
    min_p: float | None = field(default=None, metadata={"low": 0, "high": 1})
    repetition_penalty: float | None = None
    max_length: int | None = field(default=None, metadata={"low": 0})
    max_new_tokens: int | None = None


@dataclass
class ModelConfig(BaseModelConfig):
    """The whole model.

    Attributes:
        pad_token_id: ``<PAD>``, the first id above the tokenizer's own vocabulary.
        image_token_index: first of the reserved ids above ``<PAD>`` that stand for
            visual tokens in ``input_ids`` (see ``processing_moxin.py``).
        prompt_format: name of the prompt that the model was trained with.
        llm_backbone_id: Prismatic's id of the language model.
        norm_stats: OpenVLA's action statistics per data set.
        n_action_bins: number of an OpenVLA model's action tokens.
        pad_to_multiple_of: OpenVLA's padding of the vocabulary, in ids.
        action_config: how actions are given; None if the model gives none.
        timm_model_ids, timm_override_act_layers, image_sizes, arch_specifier: set by
            HF-converted configs, whose sizes follow from the weights.
        generation_config: content of generation_config.json, which mlx-vlm puts here.
    """

    text_config: TextConfig = field(default_factory=TextConfig)
    vision_config: VisionConfig = field(default_factory=VisionConfig)
    projector_config: ProjectorConfig = field(default_factory=ProjectorConfig)
    model_type: str = "moxin"
    pad_token_id: int = field(default=32000, metadata={"low": 0})
    image_token_index: int | None = None
    bos_token_id: int = field(default=1, metadata={"low": 0})
    eos_token_id: int | list[int] = field(default=2, metadata={"low": 0})
    prompt_format: str = field(default="pure", metadata={"choices": tuple(PROMPT_FORMATS)})
    llm_backbone_id: str | None = None
    norm_stats: dict[str, Any] | None = None
    n_action_bins: int | None = None
    pad_to_multiple_of: int | None = None
    action_config: ActionConfig | None = None
    timm_model_ids: list[str] | None = None
    timm_override_act_layers: list[str | None] | None = None
    image_sizes: list[int] | None = None
    arch_specifier: str | None = None
    generation_config: dict[str, Any] | None = None

    # No field: it is no setting of the model.
    _model_path = None

    def __post_init__(self):
        check_settings(ModelConfig, vars(self))
        for name, kind in (
            ("text_config", TextConfig),
            ("vision_config", VisionConfig),
            ("projector_config", ProjectorConfig),
            ("action_config", ActionConfig),
        ):
            value = getattr(self, name)
            if isinstance(value, dict):
                setattr(self, name, kind.from_dict(value))
        if self.norm_stats and self.action_config is None:
            self.action_config = ActionConfig()
        if self.image_token_index is None:
            self.image_token_index = self.pad_token_id + 1
        self._check_ids()

    def _check_ids(self) -> None:
        vocab_size = self.text_config.vocab_size
        eos = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        for name, ids in (("bos_token_id", [self.bos_token_id]), ("eos_token_id", eos)):
            if not ids or max(ids) >= vocab_size:
                raise ValueError(
                    f"config.json: {name} is {getattr(self, name)}, but the vocabulary "
                    f"has {vocab_size} ids, from 0"
                )
        if not self.pad_token_id < self.image_token_index < self.text_config.vocab_size - 1:
            raise ValueError(
                "config.json: at least two ids above pad_token_id must be free for visual tokens, "
                f"got pad_token_id {self.pad_token_id}, image_token_index "
                f"{self.image_token_index}, vocab_size {self.text_config.vocab_size}"
            )

    @classmethod
    def from_dict(cls, params: dict[str, Any]) -> "ModelConfig":
        """Build from ``config.json``; that of an HF-converted checkpoint is checked first.

        Its towers and projector have the published sizes until ``model_path`` is set.

        Raises:
            ValueError: what is missing, out of range or not supported.
        """
        check_setting(CONFIG_FILE, "text_config", params.get("text_config"), dict | None)
        is_source = params.get("model_type") in SOURCE_TYPES
        if is_source:
            text_config = params.get("text_config") or {}
            check_supported(
                {
                    "timm_model_ids": params.get("timm_model_ids"),
                    "arch_specifier": params.get("arch_specifier"),
                    "llm_backbone_id": params.get("llm_backbone_id"),
                    "text_config.model_type": text_config.get("model_type"),
                }
            )
        missing = [name for name in ("text_config", "pad_token_id") if not params.get(name)]
        if missing:
            raise ValueError(f"config.json: {' and '.join(missing)} missing")
        check_settings(cls, params)
        check_settings(GenerationDefaults, params)
        generation_config = params.get("generation_config") or {}
        check_settings(GenerationDefaults, generation_config, file="generation_config.json")
        if params.get("quantization") is not None:
            check_quantization(params["quantization"])
        config = super().from_dict(params)
        if is_source:
            config.prompt_format = prompt_format(config.llm_backbone_id)
            config._set_published_sizes()
        return config

    @property
    def model_path(self) -> str | None:
        """Directory of the checkpoint. mlx-vlm sets it before it builds the model.

        Setting it reads the headers of the tensor files, so that the config is complete and
        ``Model(config)`` reads no file: sizes that an HF-converted config leaves out are
        filled in. Files are checked in any case, since a tensor of a damaged file would fail
        only when it is computed.

        Raises:
            FileNotFoundError, ValueError: what is missing, damaged or does not fit.
        """
        return self._model_path

    @model_path.setter
    def model_path(self, path: str | Path | None) -> None:
        if path is not None:
            shapes = tensor_shapes(Path(path))
            check_layout(shapes, Path(path))
            if self.timm_model_ids is not None:
                self.set_sizes(shapes)
            self.read_statistics(Path(path))
        self._model_path = path

    def read_statistics(self, directory: Path) -> None:
        """Let a dataset_statistics.json beside the checkpoint replace ``norm_stats``.

        Raises:
            ValueError: if there is one that cannot be read.
        """
        path = directory / STATISTICS_FILE
        if not path.is_file():
            return
        try:
            statistics = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error}); copy it again") from error
        if not isinstance(statistics, dict) or not statistics:
            raise ValueError(f"{path} holds no statistics by data set; copy it again")
        self.norm_stats = statistics
        if self.action_config is None:
            self.action_config = ActionConfig()

    def _set_published_sizes(self) -> None:
        models = tower_models(self.timm_model_ids, self.timm_override_act_layers)
        self.vision_config = VisionConfig(
            image_size=(self.image_sizes or [models[-1].image_size])[0],
            patch_size=models[-1].patch_size,
            **{model.name: model.tower_config() for model in models},
        )
        width = self.vision_config.hidden_size
        self.projector_config = ProjectorConfig(
            model_type=projector_kind(self.arch_specifier),
            input_size=width,
            intermediate_size=4 * width,
            output_size=self.text_config.hidden_size,
        )

    def set_sizes(self, shapes: Shapes, is_converted: bool | None = None) -> None:
        """Give a config with ``timm_model_ids`` the sizes of its checkpoint's tensors.

        Args:
            shapes: of every tensor, by its name in an HF-converted checkpoint or ours.
            is_converted: whether the blocks that are not used were left out; None: they
                were if the names are ours.

        Raises:
            ValueError: naming a tensor that is missing or does not fit.
        """
        models = tower_models(self.timm_model_ids, self.timm_override_act_layers)
        if is_converted is None:
            is_converted = any(name.startswith("vision_tower.") for name in shapes)
        towers = [model.name for model in models]
        shapes = {moxin_name(name, towers): shape for name, shape in shapes.items()}
        image_size = self.image_sizes[0] if self.image_sizes else None
        self.vision_config = vision_sizes(shapes, models, image_size, is_converted)
        self.projector_config = projector_sizes(shapes, projector_kind(self.arch_specifier))

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, ready for ``json``."""
        return asdict(self)
