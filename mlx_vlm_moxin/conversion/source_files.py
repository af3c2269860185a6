"""Where a conversion starts, and the options of the command line that say so."""

import argparse
from dataclasses import dataclass, fields

from mlx_vlm_moxin.checkpoints.action_options import (
    NO_OPTIONS,
    ActionOptions,
    action_options,
    add_action_options,
)
from mlx_vlm_moxin.checkpoints.sources import Source, open_source
from mlx_vlm_moxin.checkpoints.sources.files import is_repository, split_repository
from mlx_vlm_moxin.checkpoints.sources.towers import TOWER_TITLES


@dataclass(frozen=True)
class SourceFiles:
    """Where a conversion starts.

    Attributes:
        hf_path: local directory or Hub repository.
        revision: branch, tag or commit of the repository.
        dino, siglip, clip, in1k, llm: for native sources, see
            :func:`~mlx_vlm_moxin.checkpoints.sources.native.open_native`.
        actions: what the files of an action model do not say.
    """

    hf_path: str
    revision: str | None = None
    dino: str | None = None
    siglip: str | None = None
    clip: str | None = None
    in1k: str | None = None
    llm: str | None = None
    actions: ActionOptions = NO_OPTIONS

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> "SourceFiles":
        """What a parser with :func:`add_source_options` and ``--hf-path`` read."""
        values = {field.name: getattr(args, field.name, None) for field in fields(cls)}
        return cls(**{**values, "actions": action_options(args)})

    @property
    def paths(self) -> list[str]:
        """All that were given."""
        values = (self.hf_path, self.dino, self.siglip, self.clip, self.in1k, self.llm)
        return [value for value in values if value is not None]

    def open(self) -> Source:
        """See :func:`~mlx_vlm_moxin.checkpoints.sources.open_source`."""
        towers = {name: getattr(self, name) for name in TOWER_TITLES}
        return open_source(self.hf_path, self.revision, towers, self.llm, self.actions)

    @property
    def base_model(self) -> str | None:
        """Hub id of the source; None for a local directory."""
        return split_repository(self.hf_path)[0] if is_repository(self.hf_path) else None


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for what the files of native runs and of action models do not hold."""
    group = parser.add_argument_group("native sources (files, directories or Hub repositories)")
    for name, title in TOWER_TITLES.items():
        group.add_argument(
            f"--{name}", help=f"weights of the {title} tower (default: timm's on the Hub)"
        )
    group.add_argument(
        "--llm", help="config and tokenizer of the language model (default: on the Hub)"
    )
    add_action_options(parser)
