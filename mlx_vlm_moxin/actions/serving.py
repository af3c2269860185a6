"""The server's options for requests to ``/act`` that do not set them."""

from dataclasses import dataclass


@dataclass
class ServingDefaults:
    """Set by ``python -m mlx_vlm_moxin server``.

    Attributes:
        unnorm_key: data set whose statistics scale the action.
        discrete: read tokens from models that have a regression head.
        action_ids_only: choose among the ids of actions only.
    """

    unnorm_key: str | None = None
    discrete: bool = False
    action_ids_only: bool = False


defaults = ServingDefaults()
