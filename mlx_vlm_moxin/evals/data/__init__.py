"""Readers of the data sets in their published forms; each yields ``example.Example``."""
