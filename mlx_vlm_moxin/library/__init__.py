"""What ``from mlx_vlm_moxin import ...`` gives: load, generate, save, pictures."""
