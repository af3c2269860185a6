"""Everything that touches a name of mlx-vlm, mlx-lm or transformers."""
