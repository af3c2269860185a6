"""``python -m mlx_vlm_moxin doctor``: checks the installation and what fits this machine."""
