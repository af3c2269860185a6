"""Moxin-tiny: a small model of Moxin's architecture that has learnt to answer questions.

The pictures show a few coloured shapes and are drawn with Pillow, the questions have
known answers, and the trained model (``checkpoint/``) is stored as what people start
from: an HF-converted Prismatic checkpoint in bfloat16. One module per step:

- ``scenes``: what a picture can show, and what only the test set shows;
- ``drawing``: a scene as a picture; ``questions``: what can be asked about it;
- ``texts``: the tokenizer; ``dataset``: pictures and texts as arrays;
- ``architecture``: the sizes; ``checkpoint``: writing the model;
- ``train``, ``evaluate``, ``demo``: the commands ``python -m moxin_tiny.<name>``, run
  in the folder ``tests``; ``objective``, ``answering`` and ``plots`` serve them.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "checkpoint"
RESULTS = FOLDER / "results.json"
TRAINING = FOLDER / "training.json"
STATE = FOLDER / "state.safetensors"
DEMO = FOLDER / "demo.png"
