"""``python -m mlx_vlm_moxin bench``: how fast Moxin runs on this machine, and how fast it could.

Every figure is the median of several rounds and is shown with the machine's limit,
measured in the same run: decoding cannot be faster than reading the weights and the
key-value cache once per token; encoding and prefill cannot be faster than their arithmetic.
"""
