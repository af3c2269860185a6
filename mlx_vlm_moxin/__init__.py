"""Moxin-7B VLM for stock mlx-vlm.

mlx-vlm finds a model by importing ``mlx_vlm.models.<model_type>``. Installing this
package adds a finder for two of those names; nothing else happens, and nothing heavy
is imported, until mlx-vlm asks for one of them:

- ``mlx_vlm.models.moxin``: the package in ``mlx_vlm_moxin/moxin/``, loaded under the
  name it would have inside mlx-vlm, so that its relative imports work unchanged.
- ``mlx_vlm.models.prismatic``: the same module object, for checkpoints that still
  carry the model type of the PyTorch code base they come from.

This file runs at the start of every Python process of the environment (from the
``.pth`` or ``.start`` file next to it in site-packages): keep it free of imports.
"""

import sys

__version__ = "0.1.0"
__all__ = ["register"]

MODEL_MODULE = "mlx_vlm.models.moxin"
ALIAS_MODULE = "mlx_vlm.models.prismatic"


class _MoxinFinder:
    """Meta path finder for the two module names above."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname != MODEL_MODULE and fullname != ALIAS_MODULE:
            return None
        from mlx_vlm_moxin.loader import model_spec

        return model_spec(fullname)


def register() -> None:
    """Make the model types ``moxin`` and ``prismatic`` known to mlx-vlm.

    Called by the installed start-up file; call it yourself only where Python does not
    read those (``python -S``, ``pip install --target``, zipapps). The finder is
    appended, so a ``moxin`` that mlx-vlm itself may ship one day wins. Idempotent.
    """
    if _MoxinFinder not in sys.meta_path:
        sys.meta_path.append(_MoxinFinder)
