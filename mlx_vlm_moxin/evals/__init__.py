"""Benchmarks of Moxin's report that ``mlx_vlm.evals`` does not have."""
