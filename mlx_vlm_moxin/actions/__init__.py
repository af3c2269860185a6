"""Robot actions: OpenVLA, OpenVLA-OFT and Moxin-VLA, from a picture and an instruction."""
