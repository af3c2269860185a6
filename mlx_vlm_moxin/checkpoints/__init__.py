"""Checkpoints on disk: every source as named lazy tensors, and everything that writes one."""

# Importing the model runs plugin modules that import from this package. The model is imported
# first, so that no module of this package is partially imported at that time.
import mlx_vlm.models.moxin  # noqa: F401
