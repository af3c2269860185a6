"""Settings of the server that mlx-vlm does not have, each an environment variable.

``python -m mlx_vlm_moxin server`` has options for them and stricter defaults
(``server_command``); stock ``mlx_vlm.server`` reads the variables.
"""

import os
from dataclasses import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mlx_vlm.models.moxin.picture_sources import PictureLimits

LOCAL_FILES = "MLX_VLM_MOXIN_LOCAL_FILES"
PRIVATE_ADDRESSES = "MLX_VLM_MOXIN_PRIVATE_ADDRESSES"
PIN_MODEL = "MLX_VLM_MOXIN_PIN_MODEL"
MAX_BODY_BYTES = "MLX_VLM_MOXIN_MAX_BODY_BYTES"
ALLOW_ORIGINS = "MLX_VLM_MOXIN_ALLOW_ORIGINS"
# Variables of all commands, see PictureLimits.from_environment.
MAX_PIXELS = "MLX_VLM_MOXIN_MAX_PIXELS"
PICTURE_TIMEOUT = "MLX_VLM_MOXIN_PICTURE_TIMEOUT"

_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class ServerSettings:
    """The server's restrictions.

    Attributes:
        local_files: whether a request may name a picture on the server's disk.
        private_addresses: whether a picture's URL may lead to the server's private networks.
        pin_model: whether requests get the loaded model only.
        max_body_bytes: size of a request's body.
        allow_origins: web pages whose scripts may use the server; None for mlx-vlm's default, all.
    """

    local_files: bool = True
    private_addresses: bool = True
    pin_model: bool = False
    max_body_bytes: int = 50 * 2**20
    allow_origins: tuple[str, ...] | None = None

    @classmethod
    def from_environment(cls) -> "ServerSettings":
        """The settings in the current environment.

        Raises:
            ValueError: naming the variable whose value cannot be used.
        """
        origins = os.environ.get(ALLOW_ORIGINS)
        return cls(
            local_files=_flag(LOCAL_FILES, cls.local_files),
            private_addresses=_flag(PRIVATE_ADDRESSES, cls.private_addresses),
            pin_model=_flag(PIN_MODEL, cls.pin_model),
            max_body_bytes=_positive(MAX_BODY_BYTES, cls.max_body_bytes),
            allow_origins=None if origins is None else tuple(origins.split()),
        )

    def picture_limits(self) -> "PictureLimits":
        """Limits for the pictures of requests.

        Raises:
            ValueError: see ``PictureLimits.from_environment``.
        """
        from mlx_vlm.models.moxin.picture_sources import PictureLimits

        limits = PictureLimits.from_environment(
            local_files=self.local_files, private_addresses=self.private_addresses
        )
        # A picture in a URL may be as large as one in the request itself.
        return PictureLimits(
            **{**vars(limits), "max_bytes": min(limits.max_bytes, self.max_body_bytes)}
        )


def _flag(variable: str, default: bool) -> bool:
    text = os.environ.get(variable, "").strip().lower()
    if text not in ("", *_YES, *_NO):
        raise ValueError(f"{variable}={text[:40]!r} must be 1 or 0")
    return default if not text else text in _YES


def _positive(variable: str, default: int) -> int:
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{variable}={text[:40]!r} must be a whole number, at least 1")
    return int(text)
