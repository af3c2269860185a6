"""The data sets: each published form, read into ``example.Example``."""
