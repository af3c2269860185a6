"""Tests of the benchmark, and ``bench.peers``, which compares Moxin with other software."""
