"""The converter: ``python -m mlx_vlm_moxin convert``."""

# See mlx_vlm_moxin/checkpoints/__init__.py.
import mlx_vlm.models.moxin  # noqa: F401
