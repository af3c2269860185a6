"""What ``from mlx_vlm_moxin import ...`` gives: load, generate, save, pictures."""

# See mlx_vlm_moxin/checkpoints/__init__.py.
import mlx_vlm.models.moxin  # noqa: F401
