"""Moxin's decoder for stock mlx-lm, without towers and projector.

``decoder.py`` is served as ``mlx_lm.models.moxin`` and ``mlx_lm.models.prismatic``, so a
checkpoint that mlx-vlm runs is one that mlx-lm runs, text only.
"""
