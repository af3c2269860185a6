"""Moxin-7B VLM for stock mlx-vlm.

mlx-vlm finds a model by importing ``mlx_vlm.models.<model_type>``. Installing this
package adds a finder for a few such names; nothing else happens, and nothing heavy
is imported, until one of them is imported:

- ``mlx_vlm.models.moxin``: the package in ``mlx_vlm_moxin/moxin/``, loaded under the
  name it would have inside mlx-vlm, so that its relative imports work unchanged.
- ``mlx_vlm.models.prismatic`` and ``mlx_vlm.models.openvla``: the same module object, for
  checkpoints with the model type of the original PyTorch code.
- ``moxin``, ``prismatic`` and ``openvla`` in ``mlx_lm.models``: the decoder alone, for mlx-lm
  (``mlx_vlm_moxin/plugin/mlx_lm/decoder.py``).

This file runs at the start of every Python process of the environment (from the
``.pth`` or ``.start`` file next to it in site-packages): keep it free of imports.
"""

import sys

__version__ = "0.1.0"
__all__ = [
    "generate",
    "load",
    "normalize_dino",
    "normalize_siglip",
    "predict_action",
    "preprocess",
    "register",
    "save_quantized",
    "stream_text",
    "to_pixel_values",
]

# What type checkers take for typing.TYPE_CHECKING, without its import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from mlx_vlm_moxin.actions.policy import predict_action
    from mlx_vlm_moxin.library.generate import generate, stream_text
    from mlx_vlm_moxin.library.images import (
        normalize_dino,
        normalize_siglip,
        preprocess,
        to_pixel_values,
    )
    from mlx_vlm_moxin.library.load import load
    from mlx_vlm_moxin.library.save import save_quantized

# The library: name -> the module that is imported when the name is first used.
_LIBRARY = {
    "generate": "library.generate",
    "load": "library.load",
    "normalize_dino": "library.images",
    "normalize_siglip": "library.images",
    "predict_action": "actions.policy",
    "preprocess": "library.images",
    "save_quantized": "library.save",
    "stream_text": "library.generate",
    "to_pixel_values": "library.images",
}

# If this environment variable is set, mlx-vlm and mlx-lm do not find this package.
SWITCH = "MLX_VLM_MOXIN_DISABLE"

MODEL_MODULE = "mlx_vlm.models.moxin"
DECODER_MODULE = "mlx_vlm_moxin.plugin.mlx_lm.decoder"
ALIASES = {
    "mlx_vlm.models.prismatic": MODEL_MODULE,
    "mlx_vlm.models.openvla": MODEL_MODULE,
    "mlx_lm.models.moxin": DECODER_MODULE,
    "mlx_lm.models.prismatic": DECODER_MODULE,
    "mlx_lm.models.openvla": DECODER_MODULE,
}


class _MoxinFinder:
    """Meta path finder for the module names above."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname != MODEL_MODULE and fullname not in ALIASES:
            return None
        # Imported here, since most processes never need it.
        import os

        if os.environ.get(SWITCH, "0") not in ("", "0"):
            return None
        from mlx_vlm_moxin.plugin.import_specs import model_spec

        return model_spec(fullname)


def register() -> None:
    """Make the model types ``moxin``, ``prismatic`` and ``openvla`` known to mlx-vlm and mlx-lm.

    Called by the installed start-up file; call it yourself only where Python does not
    read those (``python -S``, ``pip install --target``, zipapps). The finder is
    appended, so a future ``moxin`` of mlx-vlm has priority. Idempotent.
    """
    if _MoxinFinder not in sys.meta_path:
        sys.meta_path.append(_MoxinFinder)


def __getattr__(name):
    if name not in _LIBRARY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    register()
    try:
        return getattr(import_module(f"{__name__}.{_LIBRARY[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name == MODEL_MODULE:
            raise ImportError(f"{SWITCH} is set, which switches this package off") from error
        raise
