"""Engines for NVIDIA GPUs: kernels of our own for the decoder and the vision towers."""
