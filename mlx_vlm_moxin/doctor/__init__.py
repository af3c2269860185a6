"""``python -m mlx_vlm_moxin doctor``: whether an installation works, and what fits the machine."""
