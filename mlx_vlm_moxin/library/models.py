"""``python -m mlx_vlm_moxin models``: the published models that are supported, and their sizes.

Sizes are computed from the models' configurations; nothing is downloaded.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby

from mlx.utils import tree_flatten
from mlx_vlm.models.moxin import ModelConfig
from mlx_vlm.models.moxin.prismatic import VISION_BACKBONES, prompt_format
from mlx_vlm.models.moxin.towers import TIMM_MODELS
from mlx_vlm.models.moxin.vision_config import VisionConfig
from rich import box
from rich.table import Table

from mlx_vlm_moxin.checkpoints.language_models import LANGUAGE_MODELS
from mlx_vlm_moxin.checkpoints.messages import print_table
from mlx_vlm_moxin.checkpoints.prismatic_models import (
    PRISMATIC_MODELS,
    PRISMATIC_REPOSITORY,
    PrismaticModel,
)
from mlx_vlm_moxin.checkpoints.sources.towers import TOWER_TITLES
from mlx_vlm_moxin.library.sizes import build_uncomputed

WIDTHS = (4, 8, 16)
GROUP_SIZE = 64
# A scale and a bias of 16 bits per group.
_GROUP_BITS = 32 / GROUP_SIZE
_MOXIN = PRISMATIC_MODELS["prism-moxin-dinosiglip-224px+7b"]
_OPENVLA = PRISMATIC_MODELS["prism-dinosiglip-224px+7b"]


@dataclass(frozen=True)
class Published:
    """A checkpoint on the Hub.

    Attributes:
        source: the value of ``--hf-path`` for converting it.
        model: its settings.
        bytes_per_weight: bytes of each stored weight.
        has_towers: whether it contains its vision towers, unused parts included; otherwise
            timm's towers are downloaded in addition.
    """

    source: str
    model: PrismaticModel
    bytes_per_weight: int = 2
    has_towers: bool = True


PUBLISHED = {
    "Moxin-7B-VLM": Published("moxin-org/Moxin-7B-VLM", _MOXIN, 4, has_towers=False),
    "Moxin-7B-VLM-hf": Published("bobchenyx/Moxin-7B-VLM-hf", _MOXIN),
    "openvla-7b": Published("openvla/openvla-7b", _OPENVLA),
    "openvla-v01-7b": Published("openvla/openvla-v01-7b", PRISMATIC_MODELS["siglip-224px+7b"]),
    **{
        f"openvla-7b-finetuned-libero-{suite}": Published(
            f"openvla/openvla-7b-finetuned-libero-{suite}", _OPENVLA
        )
        for suite in ("spatial", "object", "goal", "10")
    },
    **{
        f"openvla-7b-oft-finetuned-libero-{suite}": Published(
            f"moojink/openvla-7b-oft-finetuned-libero-{suite}", _OPENVLA
        )
        for suite in ("spatial", "object", "goal", "10")
    },
    **{
        name: Published(f"{PRISMATIC_REPOSITORY}/{name}", model, has_towers=False)
        for name, model in PRISMATIC_MODELS.items()
        if model.llm_backbone_id in LANGUAGE_MODELS and model is not _MOXIN
    },
}


@dataclass(frozen=True)
class Row:
    """The facts listed about a model; sizes in bytes.

    Attributes:
        download: size of the checkpoint, without towers that are downloaded from timm.
        memory: size of the weights, by bits per weight of the decoder.
    """

    id: str
    source: str
    towers: str
    pixels: int
    decoder: str
    prompt: str
    download: int
    memory: dict[int, int]


def config_of(model: PrismaticModel) -> ModelConfig:
    """The complete configuration of a published model."""
    towers = VISION_BACKBONES[model.vision_backbone_id]
    return ModelConfig.from_dict(
        {
            "model_type": "prismatic",
            "timm_model_ids": [*towers],
            "timm_override_act_layers": [*towers.values()],
            "arch_specifier": model.arch_specifier,
            "llm_backbone_id": model.llm_backbone_id,
            "text_config": LANGUAGE_MODELS[model.llm_backbone_id].text_config,
            "pad_token_id": 32000,
        }
    )


@lru_cache
def _count_weights(vision: str, arch: str, llm: str) -> tuple[int, int, int]:
    """Numbers of weights: of the vision towers, of the quantised layers, of all."""
    model = build_uncomputed(config_of(PrismaticModel(vision, "", llm, arch)))
    paths = {path for path, module in model.named_modules() if hasattr(module, "to_quantized")}
    counts = [0, 0, 0]
    for name, value in tree_flatten(model.parameters()):
        path = name.rpartition(".")[0]
        is_packed = path in paths and model.quant_predicate(path, model)
        counts[0] += value.size * name.startswith("vision_tower.")
        counts[1] += value.size * is_packed
        counts[2] += value.size
    return tuple(counts)


def count_unused(vision: VisionConfig) -> int:
    """Weights in HF-converted checkpoints that the model does not use.

    These are each tower's last block and final norm, and the attention pooling of towers without
    a class token (SigLIP), as in timm 0.9.16.
    """
    count = 0
    for tower in vision.towers.values():
        width, inner = tower.hidden_size, tower.intermediate_size
        attention = 4 * width * (width + 1)
        mlp = inner * (width + 1) + width * (inner + 1)
        norm = 2 * width
        count += attention + mlp + 3 * norm + 2 * width * tower.layer_scale
        if not tower.class_token:
            count += width + attention + norm + mlp
    return count


def rows() -> list[Row]:
    """All supported models."""
    listed = []
    for name, published in PUBLISHED.items():
        model = published.model
        models = [TIMM_MODELS[timm_id] for timm_id in VISION_BACKBONES[model.vision_backbone_id]]
        towers, packed, total = _count_weights(
            model.vision_backbone_id, model.arch_specifier, model.llm_backbone_id
        )
        stored = total - towers
        if published.has_towers:
            stored = total + count_unused(config_of(model).vision_config)
        memory = {
            bits: round(
                2 * total
                if bits == 16
                else 2 * (total - packed) + packed * (bits + _GROUP_BITS) / 8
            )
            for bits in WIDTHS
        }
        listed.append(
            Row(
                id=name,
                source=published.source,
                towers=" + ".join(TOWER_TITLES[each.name] for each in models),
                pixels=models[-1].image_size,
                decoder=LANGUAGE_MODELS[model.llm_backbone_id].name,
                prompt=prompt_format(model.llm_backbone_id),
                download=stored * published.bytes_per_weight,
                memory=memory,
            )
        )
    return listed


def _print_table(listed: list[Row]) -> None:
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="GB. Memory: the weights at 4, 8 and 16 bits, quantised with group size 64.",
    )
    for header in ("model", "towers", "pixels", "decoder", "prompt"):
        table.add_column(header, no_wrap=header == "model")
    for header in ("download", "4", "8", "16"):
        table.add_column(header, justify="right")
    for owner, group in groupby(listed, key=lambda row: row.source.removesuffix(row.id)):
        table.add_section()
        table.add_row(owner, style="bold")
        for row in group:
            sizes = [f"{size / 1e9:.1f}" for size in (row.download, *row.memory.values())]
            table.add_row(
                f"  {row.id}", row.towers, str(row.pixels), row.decoder, row.prompt, *sizes
            )
    print_table(table)


def main() -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_vlm_moxin models",
        description="List the published models that are supported, by owner. Owner and model "
        "together are what `convert --hf-path` accepts; HF-converted ones also load as they are.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    arguments = parser.parse_args()
    listed = rows()
    if arguments.json:
        print(json.dumps([asdict(row) for row in listed], indent=2))
    else:
        _print_table(listed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
