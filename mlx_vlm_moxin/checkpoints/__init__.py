"""Checkpoints on disk: every source as named lazy tensors, and everything that writes one."""

# Importing the model runs plugin modules that import modules of this package. It comes first, so
# that none of them is half imported then.
import mlx_vlm.models.moxin  # noqa: F401
