"""The origin of a model's weights, from the files of its source and the user's options."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id

from mlx_vlm_moxin.checkpoints.sources.directory import check_inside
from mlx_vlm_moxin.checkpoints.sources.files import is_repository, split_repository

CARD_FILE = "README.md"
_MAX_CARD_BYTES = 1 << 20
# Relations to a base model that copies and conversions of a model inherit.
_KEPT_RELATIONS = ("finetune", "adapter", "merge")
# Layout of the Hub's cache: models--owner--name/snapshots/commit.
_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/[^/]+(?:/.*)?$")


def check_hub_id(option: str, value: str) -> None:
    """Refuse what cannot be a Hub repository, since the Hub rejects a card that names one.

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
    """What is known about a model's origin; None for what is not known.

    Attributes:
        source: Hub repository of the source, including the model's folder in it if there is
            one; None for a local directory, whose path means nothing to others.
        base_model: Hub repository of the model that this one was made from.
        relation: how it differs from ``base_model``, apart from how weights are stored:
            "finetune", "adapter" or "merge".
        license: the Hub's name of the licence.
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
    """The metadata of a model card; empty if there is no readable card."""
    path = directory / CARD_FILE
    try:
        check_inside(path, directory)
        if not path.is_file() or path.stat().st_size > _MAX_CARD_BYTES:
            return {}
        return ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    # Cards are written by hand; a malformed one must not prevent a conversion.
    except Exception:
        return {}


def hub_source(name: str) -> str | None:
    """The Hub repository of ``name`` or of a directory in the Hub's cache; None if neither."""
    if is_repository(name):
        return name
    cached = _SNAPSHOT.search(Path(name).expanduser().absolute().as_posix())
    return f"{cached[1]}/{cached[2]}" if cached else None


def read_provenance(
    name: str, directory: Path, base_model: str | None = None, license: str | None = None
) -> Provenance:
    """Determine the origin of a source.

    Args:
        name: the source as the user named it: directory or Hub repository.
        directory: the source's files, including its model card if it has one.
        base_model, license: the user's values, which override the card.
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
