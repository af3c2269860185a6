"""Configuration of the visual parts: vision towers and projector."""

from dataclasses import dataclass, field

from ..base import BaseModelConfig
from .towers import DINO_ID, SIGLIP_ID, TIMM_MODELS, TOWER_NAMES, TowerConfig
from .validation import check_settings

# Largest side of a picture in pixels; a larger one has more patches than any prompt may have.
MAX_IMAGE_SIZE = 4096
# Kinds of projectors -> number of linear layers.
PROJECTOR_LAYERS = {"linear": 1, "gelu-mlp": 2, "fused-gelu-mlp": 3}


@dataclass
class VisionConfig(BaseModelConfig):
    """One or two towers for the same square picture, each with its own normalisation.

    Without arguments it has Moxin-7B's pair of towers.
    """

    model_type: str = "moxin_vision"
    image_size: int = field(default=224, metadata={"high": MAX_IMAGE_SIZE})
    patch_size: int = 14
    dino: TowerConfig | None = None
    siglip: TowerConfig | None = None
    clip: TowerConfig | None = None
    in1k: TowerConfig | None = None

    def __post_init__(self):
        check_settings(VisionConfig, vars(self), "vision_config")
        if self.patch_size > self.image_size:
            raise ValueError(
                f"config.json: vision_config.patch_size {self.patch_size} is larger than "
                f"image_size {self.image_size}"
            )
        for name in TOWER_NAMES:
            tower = getattr(self, name)
            if isinstance(tower, dict):
                check_settings(TowerConfig, tower, f"vision_config.{name}")
                setattr(self, name, TowerConfig.from_dict(tower))
        if not self.towers:
            self.dino = TIMM_MODELS[DINO_ID].tower_config()
            self.siglip = TIMM_MODELS[SIGLIP_ID].tower_config()
        if len(self.towers) > 2:
            raise ValueError(
                "config.json: vision_config has the towers "
                f"{', '.join(self.towers)}; supported are one and two"
            )

    @property
    def towers(self) -> dict[str, TowerConfig]:
        """The towers by name, in the order in which their features are concatenated."""
        towers = {name: getattr(self, name) for name in TOWER_NAMES}
        return {name: tower for name, tower in towers.items() if tower is not None}

    @property
    def num_patches(self) -> int:
        """Visual tokens per picture; a margin narrower than a patch is ignored."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def hidden_size(self) -> int:
        """Width of the features: the towers' channels, concatenated."""
        return sum(tower.hidden_size for tower in self.towers.values())


@dataclass
class ProjectorConfig(BaseModelConfig):
    """The projector: ``model_type`` is one of ``PROJECTOR_LAYERS``.

    ``intermediate_size`` is the width after the first of three layers; projectors of one
    and two layers have only the other two widths.
    """

    model_type: str = field(default="fused-gelu-mlp", metadata={"choices": [*PROJECTOR_LAYERS]})
    input_size: int = 2176
    intermediate_size: int = 8704
    output_size: int = 4096

    def __post_init__(self):
        check_settings(ProjectorConfig, vars(self), "projector_config")
