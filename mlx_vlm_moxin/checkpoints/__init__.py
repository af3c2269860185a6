"""Checkpoints on disk: every source as named lazy tensors, and everything that writes one."""
