"""Settings of a native training run of a Prismatic VLM, or of an OpenVLA model built on one."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mlx_vlm.models.moxin.config import STATISTICS_FILE
from mlx_vlm.models.moxin.prismatic import check_supported

from mlx_vlm_moxin.checkpoints.prismatic_models import PRISMATIC_MODELS, PrismaticModel
from mlx_vlm_moxin.checkpoints.sources.directory import read_json
from mlx_vlm_moxin.checkpoints.sources.files import fetch, is_repository, list_files

_FOLDER = "checkpoints"
LATEST = f"{_FOLDER}/latest-checkpoint.pt"
# Excludes characters that a download would interpret as a pattern.
_STEP = re.compile(_FOLDER + r"/step-(\d+)[\w=.+-]*\.pt")
# prismatic/vla/action_tokenizer.py: ActionTokenizer(bins=256).
ACTION_BINS = 256
_SETTINGS = tuple(field.name for field in fields(PrismaticModel))


@dataclass(frozen=True)
class Run:
    """The settings in a run's config.json.

    Attributes:
        model: towers, projector, language model and resize strategy.
        max_length: tokens that prompts are truncated to.
        norm_stats: action statistics of an OpenVLA run, by data set.
    """

    model: PrismaticModel
    max_length: int = 2048
    norm_stats: dict[str, Any] | None = None


def is_native(config: dict[str, Any]) -> bool:
    """Whether a config.json belongs to a native run."""
    model, vla = config.get("model"), config.get("vla")
    return (isinstance(model, dict) and "llm_backbone_id" in model) or (
        isinstance(vla, dict) and "base_vlm" in vla
    )


def find_checkpoint(directory: Path) -> Path | None:
    """The checkpoint of a run: the latest one, or that of the last step; None if there is none."""
    if (directory / LATEST).exists():
        return directory / LATEST
    steps = [f"{_FOLDER}/{path.name}" for path in (directory / _FOLDER).glob("step-*.pt")]
    last = _last_step(steps)
    return None if last is None else directory / last


def _last_step(files: Iterable[str]) -> str | None:
    """The last of files like ``checkpoints/step-295000-epoch-40-loss=0.2200.pt``."""
    matches = [match for match in map(_STEP.fullmatch, files) if match]
    return max(matches, key=lambda match: int(match[1]))[0] if matches else None


def fetch_native(name: str, revision: str | None) -> Path:
    """The directory of a native run; from the Hub, only one checkpoint is downloaded.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        OSError: if the download fails.
    """
    settings = ["config.json", STATISTICS_FILE]
    directory = fetch(name, [*settings, LATEST], revision)
    if find_checkpoint(directory) is None and is_repository(name):
        # OpenVLA's runs have no latest-checkpoint.pt.
        last = _last_step(list_files(name, revision))
        if last is not None:
            directory = fetch(name, [*settings, last], revision)
    if find_checkpoint(directory) is None:
        raise FileNotFoundError(f"{name} has no {LATEST}, and no {_FOLDER}/step-*.pt")
    return directory


def _base_model(base_vlm: str) -> PrismaticModel:
    """Settings of the VLM that an OpenVLA run was built on, by its id or a path ending in it."""
    name = base_vlm.rstrip("/").rpartition("/")[2]
    if name not in PRISMATIC_MODELS:
        raise ValueError(
            f"This OpenVLA run was built on {base_vlm!r}, which is not a published Prismatic "
            f"model; `python -m mlx_vlm_moxin models` lists the supported ones"
        )
    return PRISMATIC_MODELS[name]


def read_run(directory: Path) -> Run:
    """The settings of the native run in ``directory``.

    Raises:
        FileNotFoundError, ValueError: naming what is missing or not supported.
    """
    config = read_json(directory / "config.json")
    if "vla" in config:
        if not (directory / STATISTICS_FILE).is_file():
            raise FileNotFoundError(
                f"{directory} has no {STATISTICS_FILE}; copy it from the training run"
            )
        statistics = read_json(directory / STATISTICS_FILE)
        if not statistics:
            raise ValueError(f"{directory}/{STATISTICS_FILE} is empty; copy it again")
        run = Run(_base_model(str(config["vla"]["base_vlm"])), norm_stats=statistics)
    else:
        settings = config["model"]
        missing = [name for name in _SETTINGS if not isinstance(settings.get(name), str)]
        if missing:
            raise ValueError(f"{directory}/config.json: 'model' has no {', '.join(missing)}")
        values = {name: settings[name] for name in _SETTINGS}
        run = Run(PrismaticModel(**values), settings.get("llm_max_length", Run.max_length))
    names = ("vision_backbone_id", "arch_specifier", "llm_backbone_id")
    check_supported({name: getattr(run.model, name) for name in names})
    return run
