"""Benchmarks of Moxin's report that mlx-vlm's own ``mlx_vlm.evals`` does not have."""
