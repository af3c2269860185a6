"""Robot actions: OpenVLA, OpenVLA-OFT and Moxin-VLA, from a picture and an instruction."""

# See mlx_vlm_moxin/checkpoints/__init__.py.
import mlx_vlm.models.moxin  # noqa: F401
