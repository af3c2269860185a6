"""What a model was made from, as its config tells: published model, licence, use."""

from dataclasses import dataclass

from mlx_vlm.models.moxin.config import ModelConfig

from mlx_vlm_moxin.checkpoints.language_models import LANGUAGE_MODELS, MIT, Licence
from mlx_vlm_moxin.checkpoints.prismatic_models import PRISMATIC_REPOSITORY
from mlx_vlm_moxin.checkpoints.published import MOXIN_7B_ID

_ANSWER = """python -m mlx_vlm.generate --model {model} --max-tokens 100 --temperature 0.0 \\
    --prompt "Describe this image." --image photo.jpg"""
_ACT = """python -m mlx_vlm_moxin act --model {model} --instruction "pick up the cup" \\
    --image camera.jpg"""


@dataclass(frozen=True)
class Provenance:
    """What a model card says of a model whose source is a local directory.

    Attributes:
        base_model: Hub id of the published model.
        licence: of the weights.
        tag: the family's, for the Hub's filters.
        pipeline_tag: the Hub's name of the task.
        command: how to run it, with ``{model}``.
    """

    base_model: str
    licence: Licence
    tag: str
    pipeline_tag: str = "image-text-to-text"
    command: str = _ANSWER


def provenance(config: ModelConfig) -> Provenance:
    """The provenance of a model with this config."""
    language_model = config.llm_backbone_id
    if language_model is None:
        # Conversions from before other models than Moxin-7B were supported.
        licence = MIT
    elif language_model in LANGUAGE_MODELS:
        licence = LANGUAGE_MODELS[language_model].licence
    else:
        note = f"The weights are under the licence of the language model {language_model}."
        licence = Licence("other", note)
    is_moxin = language_model is None or language_model.startswith("moxin")
    if config.norm_stats:
        # Moxin-VLA has no published checkpoint: its closest relative is the VLM.
        base_model = MOXIN_7B_ID if is_moxin else "openvla/openvla-7b"
        return Provenance(base_model, licence, "openvla", "robotics", _ACT)
    if is_moxin:
        return Provenance(MOXIN_7B_ID, licence, "moxin")
    return Provenance(PRISMATIC_REPOSITORY, licence, "prismatic")
