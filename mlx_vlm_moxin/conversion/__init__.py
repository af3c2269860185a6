"""The converter: ``python -m mlx_vlm_moxin convert``."""
