"""Moxin-tiny: a small model of Moxin's architecture, trained to answer questions.

The pictures show a few coloured shapes and are drawn with Pillow, the questions have
known answers, and the trained model (``checkpoint/``) is stored in the form that people
start from: an HF-converted Prismatic checkpoint in bfloat16. One module per step:

- ``scenes``: the contents of pictures, and those that only the test set has;
- ``drawing``: a scene as a picture; ``questions``: questions about it;
- ``texts``: the tokenizer; ``dataset``: pictures and texts as arrays;
- ``architecture``: the sizes; ``checkpoint``: writing the model;
- ``train``, ``evaluate``, ``demo``: the commands ``python -m moxin_tiny.<name>``, run
  in the folder ``tests``; ``objective``, ``answering`` and ``plots`` are used by them.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "checkpoint"
RESULTS = FOLDER / "results.json"
TRAINING = FOLDER / "training.json"
STATE = FOLDER / "state.safetensors"
DEMO = FOLDER / "demo.png"
