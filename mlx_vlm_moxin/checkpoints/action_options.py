"""Settings of an action model that its files lack and the user gives, and the published presets."""

import argparse
from dataclasses import dataclass, fields
from typing import Any

from mlx_vlm.models.moxin.action_config import NORMALIZATIONS

# prismatic/vla/constants.py of moojink/openvla-oft, which chooses one by words in the command
# line. The number of cameras is that of the published models.
PRESETS: dict[str, dict[str, Any]] = {
    "libero": {
        "chunk_size": 8,
        "action_dim": 7,
        "proprio_dim": 8,
        "num_images": 2,
        "normalization": "bounds_q99",
    },
    "aloha": {
        "chunk_size": 25,
        "action_dim": 14,
        "proprio_dim": 14,
        "num_images": 3,
        "normalization": "bounds",
    },
    "bridge": {
        "chunk_size": 5,
        "action_dim": 7,
        "proprio_dim": 7,
        "num_images": 1,
        "normalization": "bounds_q99",
    },
}
NO_TOKEN = "none"


@dataclass(frozen=True)
class ActionOptions:
    """Settings given by a user; None for the checkpoint's or the preset's value.

    Attributes:
        preset: name in ``PRESETS``.
        discrete: ignore a regression head and decode action tokens.
        chunk_size, num_images, normalization, center_crop, policy_resize: see
            ``ActionConfig``.
        attention: ``"full"`` or ``"causal"``.
        append_token: id, or ``"none"`` for no token.
    """

    preset: str | None = None
    discrete: bool = False
    chunk_size: int | None = None
    num_images: int | None = None
    normalization: str | None = None
    attention: str | None = None
    append_token: str | None = None
    center_crop: bool | None = None
    policy_resize: bool | None = None

    @property
    def is_given(self) -> bool:
        """Whether the user gave any setting."""
        return self != NO_OPTIONS

    @property
    def is_parallel(self) -> bool:
        """Whether a given setting applies only to models that predict chunks."""
        return self.preset is not None or self.chunk_size is not None

    def settings(self) -> dict[str, Any]:
        """The values for ``ActionConfig``: the preset's, overridden by single settings.

        Raises:
            ValueError: if the preset does not exist, or ``append_token`` is not an id.
        """
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(
                f"There is no action preset {self.preset!r}; choose from {', '.join(PRESETS)}"
            )
        settings = {**PRESETS[self.preset], "policy_resize": True} if self.preset else {}
        names = ("chunk_size", "num_images", "normalization", "center_crop", "policy_resize")
        for name in names:
            if getattr(self, name) is not None:
                settings[name] = getattr(self, name)
        if self.attention is not None:
            settings["causal"] = self.attention == "causal"
        if self.append_token is not None:
            settings["append_token_id"] = _token_id(self.append_token)
        return settings


NO_OPTIONS = ActionOptions()


def _token_id(text: str) -> int | None:
    if text == NO_TOKEN:
        return None
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"--append-token needs an id or {NO_TOKEN!r}, got {text!r}")
    return int(text)


def add_action_options(parser: argparse.ArgumentParser) -> None:
    """Add the options under the names that all commands share."""
    group = parser.add_argument_group(
        "action models (settings that are not in their files; see docs/actions.md)"
    )
    add = group.add_argument
    add("--action-preset", dest="preset", choices=PRESETS, help="settings of published models")
    add("--discrete", action="store_true", help="use action tokens instead of the regression head")
    add("--action-chunk", dest="chunk_size", type=int, metavar="N", help="actions in a chunk")
    add("--action-images", dest="num_images", type=int, metavar="N", help="cameras")
    add(
        "--action-normalization",
        dest="normalization",
        choices=NORMALIZATIONS,
        help="statistics used to scale actions",
    )
    add(
        "--action-attention",
        dest="attention",
        choices=("full", "causal"),
        help="within a chunk (default: full for Llama, causal for Mistral)",
    )
    add("--append-token", metavar="ID", help="at the end of the prompt (default: 29871), or none")
    add(
        "--center-crop",
        action=argparse.BooleanOptionalAction,
        help="crop pictures to 0.9 of their area (models trained with image_aug)",
    )
    add(
        "--policy-resize",
        action=argparse.BooleanOptionalAction,
        help="resize pictures to 224 px with JPEG and Lanczos first, as OpenVLA-OFT does",
    )


def action_options(args: argparse.Namespace) -> ActionOptions:
    """The options that ``add_action_options`` parsed into ``args``."""
    return ActionOptions(
        **{field.name: getattr(args, field.name) for field in fields(ActionOptions)}
    )
