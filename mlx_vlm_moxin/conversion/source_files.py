"""The source of a conversion, and the command-line options that describe it."""

import argparse
from dataclasses import dataclass, fields

from mlx_vlm_moxin.checkpoints.action_options import (
    NO_OPTIONS,
    ActionOptions,
    action_options,
    add_action_options,
)
from mlx_vlm_moxin.checkpoints.provenance import Provenance, check_hub_id, read_provenance
from mlx_vlm_moxin.checkpoints.sources import Source, open_source
from mlx_vlm_moxin.checkpoints.sources.towers import TOWER_TITLES


@dataclass(frozen=True)
class SourceFiles:
    """The source of a conversion as the user named it.

    Attributes:
        hf_path: local directory or Hub repository.
        revision: branch, tag or commit of the repository.
        dino, siglip, clip, in1k, llm: for native sources, see
            ``native.open_native``.
        actions: settings of an action model that are not in its files.
        base_model, license: for the model card; they override the source's card.
    """

    hf_path: str
    revision: str | None = None
    dino: str | None = None
    siglip: str | None = None
    clip: str | None = None
    in1k: str | None = None
    llm: str | None = None
    actions: ActionOptions = NO_OPTIONS
    base_model: str | None = None
    license: str | None = None

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> "SourceFiles":
        """From the arguments of a parser with ``--hf-path`` and ``add_source_options``."""
        values = {field.name: getattr(args, field.name, None) for field in fields(cls)}
        return cls(**{**values, "actions": action_options(args)})

    @property
    def paths(self) -> list[str]:
        """The source and every other path or repository that was given."""
        values = (self.hf_path, self.dino, self.siglip, self.clip, self.in1k, self.llm)
        return [value for value in values if value is not None]

    def open(self) -> Source:
        """See ``sources.open_source``."""
        towers = {name: getattr(self, name) for name in TOWER_TITLES}
        return open_source(self.hf_path, self.revision, towers, self.llm, self.actions)

    def check(self) -> None:
        """Refuse a base model that is not a Hub id, before a long conversion starts.

        Raises:
            ValueError: naming it.
        """
        if self.base_model is not None:
            check_hub_id("--base-model", self.base_model)

    def provenance(self, source: Source) -> Provenance:
        """The origin of the weights of ``source``, for the model card."""
        return read_provenance(self.hf_path, source.directory, self.base_model, self.license)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for what is not in the files of native runs and action models."""
    group = parser.add_argument_group("native sources (files, directories or Hub repositories)")
    for name, title in TOWER_TITLES.items():
        group.add_argument(
            f"--{name}", help=f"weights of the {title} tower (default: timm's on the Hub)"
        )
    group.add_argument(
        "--llm", help="config and tokenizer of the language model (default: on the Hub)"
    )
    group = parser.add_argument_group("model card (default: what the source's card says)")
    group.add_argument("--base-model", help="Hub id of the model that this one was made from")
    group.add_argument("--license", help="the Hub's name of the licence of the weights")
    add_action_options(parser)
