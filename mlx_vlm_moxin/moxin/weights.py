"""Names and layout of Moxin's weights, in checkpoints and in this model.

An HF-converted Prismatic checkpoint differs from this model only in prefixes, in the
name of LayerScale's vector and in the layout of the patch convolutions. Ours keeps
timm's names inside the towers, so no other rule is needed.
"""

import re
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .vision_config import VisionConfig

# Prefixes of the first and the second tower in a source.
TOWER_PREFIXES = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
_PROJECTOR = ("projector.", "multi_modal_projector.")
# Parts of a tower after the features: final norm and SigLIP's pooling head.
_UNUSED = re.compile(r"vision_tower\.\w+\.(norm|attn_pool)\.")
_BLOCK = re.compile(r"vision_tower\.(\w+)\.blocks\.(\d+)\.")
PATCH_CONV = "patch_embed.proj.weight"
_QUANTIZED_PARTS = ("scales", "biases")


def moxin_name(name: str, towers: Sequence[str]) -> str:
    """Our name of a source tensor; names without a rule are returned unchanged.

    Args:
        towers: names of the first and, if there is one, the second tower.
    """
    prefixes = [(source, f"vision_tower.{ours}.") for source, ours in zip(TOWER_PREFIXES, towers)]
    for source, ours in [*prefixes, _PROJECTOR]:
        if name.startswith(source):
            return re.sub(r"\.(ls[12])\.scale_factor$", r".\1.gamma", ours + name[len(source) :])
    return name


def is_unused(name: str, config: VisionConfig) -> bool:
    """Whether tensor ``name`` (ours) follows the layer whose features are used."""
    block = _BLOCK.match(name)
    if block is None:
        return _UNUSED.match(name) is not None
    tower = config.towers.get(block[1])
    return tower is not None and int(block[2]) >= tower.num_blocks


def convert_weights(weights: dict[str, mx.array], config: VisionConfig) -> dict[str, mx.array]:
    """Rename tensors, drop unused ones, transpose patch convolutions from OIHW to OHWI.

    Converted weights are returned unchanged: only source names have rules.
    """
    converted, towers = {}, [*config.towers]
    for name, value in weights.items():
        ours = moxin_name(name, towers)
        if is_unused(ours, config):
            continue
        if ours != name and ours.endswith(PATCH_CONV):
            value = value.transpose(0, 2, 3, 1)
        converted[ours] = value
    return converted


def _some(names: list[str], limit: int = 3) -> str:
    shown = ", ".join(sorted(names)[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def check_weights(weights: dict[str, mx.array], model: nn.Module) -> None:
    """Compare ``weights`` with the parameters of ``model``.

    If the model is not yet quantised, a quantised layer of the weights has ``weight``, ``scales``
    and possibly ``biases``; the loader checks its packed shapes.

    Raises:
        ValueError: naming the tensors that are missing, unknown or of a wrong shape.
    """
    expected = {name: value.shape for name, value in tree_flatten(model.parameters())}

    def layer(name: str) -> str:
        return name.rpartition(".")[0]

    def is_known(name: str) -> bool:
        part = name.rpartition(".")[2]
        return name in expected or (
            part in _QUANTIZED_PARTS and f"{layer(name)}.weight" in expected
        )

    problems = []
    missing = [name for name in expected if name not in weights]
    if missing:
        problems.append(f"{len(missing)} tensors missing ({_some(missing)})")
    unknown = [name for name in weights if not is_known(name)]
    if unknown:
        problems.append(f"{len(unknown)} tensors unknown ({_some(unknown)})")
    misshapen = [
        f"{name} has shape {weights[name].shape}, expected {shape}"
        for name, shape in expected.items()
        if name in weights
        and f"{layer(name)}.scales" not in weights
        and weights[name].shape != shape
    ]
    if misshapen:
        problems.append(_some(misshapen, limit=2))
    if problems:
        raise ValueError("This checkpoint does not fit its config.json: " + "; ".join(problems))
