"""OpenVLA-tiny: a small model of OpenVLA's architecture that has learnt to act.

A table with coloured shapes is drawn with Pillow, an instruction says what to do, and the right
behaviour is known. One module per step:

- ``table``: what lies on the table and how the gripper moves it; ``layouts``: tables at random,
  and what only the test set shows;
- ``tasks``: instructions and when each is fulfilled; ``expert``: the right next action;
- ``drawing``: a table as a picture; ``environment``: all of this behind gymnasium's interface;
- ``actions``: actions as the model's tokens, and their statistics;
- ``texts``: the tokenizer; ``dataset``: pictures, instructions and actions as arrays;
- ``architecture``: the sizes; ``checkpoint``: writing the model;
- ``train``, ``evaluate``, ``episode``: the commands ``python -m openvla_tiny.<name>``, run in the
  folder ``tests``; ``plots`` serves them.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "checkpoint"
RESULTS = FOLDER / "results.json"
TRAINING = FOLDER / "training.json"
STATE = FOLDER / "state.safetensors"
EPISODE = FOLDER / "episode.gif"
