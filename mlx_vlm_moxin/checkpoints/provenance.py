"""Where a model's weights come from, as far as its source's files and the user say it."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id

from mlx_vlm_moxin.checkpoints.sources.files import check_inside, is_repository, split_repository

CARD_FILE = "README.md"
_MAX_CARD_BYTES = 1 << 20
# Relations to a base model that every copy and conversion of a model keeps.
_KEPT_RELATIONS = ("finetune", "adapter", "merge")
# The Hub's cache: models--owner--name/snapshots/commit.
_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/[^/]+(?:/.*)?$")


def check_hub_id(option: str, value: str) -> None:
    """Refuse what cannot be a Hub repository: the Hub refuses a card that names it.

    Raises:
        ValueError: naming the option and the value.
    """
    try:
        validate_repo_id(value)
    except HFValidationError:
        value = value[:100]
    if "/" not in value or not is_repository(value):
        raise ValueError(f"{option} needs a Hub id such as owner/name, got {value!r}")


@dataclass(frozen=True)
class Provenance:
    """What is known of a model's origin; None for what is not.

    Attributes:
        source: Hub repository of the source, with the folder of the model in it if there is
            one; None for a local directory, whose path nobody else needs.
        base_model: Hub repository of the model that this one is a form of.
        relation: how it differs from ``base_model`` beside the storage of its weights:
            "finetune", "adapter" or "merge".
        license: its name on the Hub.
        license_name, license_link: for the Hub's license "other".
    """

    source: str | None = None
    base_model: str | None = None
    relation: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) < 200 else None


def _read_card(directory: Path) -> dict[str, Any]:
    """The metadata of a model card; empty if there is none that can be read."""
    path = directory / CARD_FILE
    try:
        check_inside(path, directory)
        if not path.is_file() or path.stat().st_size > _MAX_CARD_BYTES:
            return {}
        return ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    # A card is written by hand: whatever is wrong with it, the model can be converted.
    except Exception:
        return {}


def hub_source(name: str) -> str | None:
    """The Hub repository that ``name`` or a directory of the Hub's cache is; None if neither."""
    if is_repository(name):
        return name
    cached = _SNAPSHOT.search(Path(name).expanduser().absolute().as_posix())
    return f"{cached[1]}/{cached[2]}" if cached else None


def read_provenance(
    name: str, directory: Path, base_model: str | None = None, license: str | None = None
) -> Provenance:
    """What is known of a source.

    Args:
        name: the source as the user named it: directory or Hub repository.
        directory: its files, with its model card if it has one.
        base_model, license: what the user says; they win over the card.
    """
    source, card = hub_source(name), _read_card(directory)
    from_card = _text(card.get("base_model"))
    relation = card.get("base_model_relation")
    found = Provenance(
        source=source,
        base_model=from_card,
        relation=relation if from_card and relation in _KEPT_RELATIONS else None,
        license=_text(card.get("license")),
        license_name=_text(card.get("license_name")),
        license_link=_text(card.get("license_link")),
    )
    if source is not None:
        found = replace(found, base_model=split_repository(source)[0], relation=None)
    if base_model is not None:
        found = replace(found, base_model=base_model, relation=None)
    if license is not None:
        found = replace(found, license=license, license_name=None, license_link=None)
    return found
