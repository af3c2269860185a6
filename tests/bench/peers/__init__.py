"""``python -m bench.peers``, run in ``tests``: compares Moxin with mlx-lm and PyTorch.

Every measure runs all its sides in one process, in interleaved rounds, on random weights of
the same sizes, and reports medians and their ratios. A side whose packages are missing is
skipped, one that fails is reported; the others continue.
"""
