"""The library, ``from mlx_vlm_moxin import ...``: load, generate, save, pictures."""

# See mlx_vlm_moxin/checkpoints/__init__.py.
import mlx_vlm.models.moxin  # noqa: F401
