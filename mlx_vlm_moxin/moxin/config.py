"""Configuration: one or two vision towers, a projector, a Llama or Mistral decoder.

There are two kinds of ``config.json``: ours (``model_type: moxin``, complete) and that of
an HF-converted checkpoint (``prismatic`` or ``openvla``), which has only timm's model ids
and the few text settings that differ from the library's defaults.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..base import BaseModelConfig
from .action_config import SPACE_TOKEN_ID, ActionConfig
from .checkpoint import Shapes, check_layout, projector_sizes, tensor_shapes, vision_sizes
from .prismatic import check_supported, projector_kind, prompt_format, tower_models
from .prompts import PROMPT_FORMATS
from .quantization import check_quantization
from .text_config import TextConfig
from .validation import CONFIG_FILE, check_setting, check_settings
from .vision_config import ProjectorConfig, VisionConfig
from .weights import moxin_name

# OpenVLA's training writes it next to a checkpoint.
STATISTICS_FILE = "dataset_statistics.json"
# Possible ``model_type`` of config.json: those of HF-converted checkpoints, and ours.
SOURCE_TYPES = ("prismatic", "openvla")
MODEL_TYPES = ("moxin", *SOURCE_TYPES)


@dataclass
class GenerationDefaults:
    """The settings of generation_config.json, mlx-vlm's defaults for generation."""

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
        pad_token_id: ``<PAD>``, the first id above the tokenizer's original vocabulary.
        image_token_index: first of the reserved ids above ``<PAD>``, the placeholders of visual
            tokens in ``input_ids`` (see ``prepared_picture.py``).
        prompt_format: name of the prompt that the model was trained with.
        llm_backbone_id: Prismatic's id of the language model.
        norm_stats: OpenVLA's action statistics per data set.
        n_action_bins: number of an OpenVLA model's action tokens.
        pad_to_multiple_of: OpenVLA's padding of the vocabulary, in ids.
        action_config: settings of actions; None if the model predicts none.
        timm_model_ids, timm_override_act_layers, image_sizes, arch_specifier: set by
            HF-converted configs, whose sizes follow from the weights.
        generation_config: content of generation_config.json, assigned by mlx-vlm.
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
    n_action_bins: int | None = field(default=None, metadata={"low": 2})
    pad_to_multiple_of: int | None = None
    action_config: ActionConfig | None = None
    timm_model_ids: list[str] | None = None
    timm_override_act_layers: list[str | None] | None = None
    image_sizes: list[int] | None = None
    arch_specifier: str | None = None
    generation_config: dict[str, Any] | None = None

    # Not a field, because it is not a setting of the model.
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
        if self.image_token_index is None:
            self.image_token_index = self.pad_token_id + 1
        if self.norm_stats:
            self.set_default_actions()
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
        self.check_appended_token()

    def set_default_actions(self) -> None:
        """OpenVLA's settings of actions, if the model has none.

        A vocabulary without Llama's id of a space gets no token at the end of prompts.
        """
        if self.action_config is None:
            is_known = self.image_token_index > SPACE_TOKEN_ID
            self.action_config = ActionConfig(append_token_id=SPACE_TOKEN_ID if is_known else None)

    def check_appended_token(self) -> None:
        """Refuse an id at the end of action prompts that is no token of a text.

        Raises:
            ValueError: naming it.
        """
        token = self.action_config.append_token_id if self.action_config else None
        if token is not None and token >= self.image_token_index:
            raise ValueError(
                f"action_config.append_token_id (--append-token) is {token}, but the ids of text "
                f"are 0 to {self.image_token_index - 1}"
            )

    @classmethod
    def from_dict(cls, params: dict[str, Any]) -> "ModelConfig":
        """Build from ``config.json``; that of an HF-converted checkpoint is checked first.

        Its towers and projector have the published sizes until ``model_path`` is set.

        Raises:
            ValueError: naming what is missing, out of range or not supported.
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

        Setting it reads the headers of the tensor files and fills in the sizes that an
        HF-converted config lacks, so that ``Model(config)`` reads no file. Files are checked in
        any case, since a tensor of a damaged file would fail only when it is computed.

        Raises:
            FileNotFoundError, ValueError: naming what is missing, damaged or does not fit.
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
        """Replace ``norm_stats`` by a dataset_statistics.json next to the checkpoint, if any.

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
        self.set_default_actions()

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
            is_converted: whether the unused blocks were removed; None: they
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
        """The settings as nested dictionaries, ready for ``json``."""
        return asdict(self)
