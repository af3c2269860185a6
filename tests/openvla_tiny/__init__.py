"""OpenVLA-tiny: a small model of OpenVLA's architecture, trained to act.

A table with coloured shapes is drawn with Pillow, an instruction says what to do, and the right
action is known. One module per step:

- ``table``: the things on the table and how the gripper moves them; ``layouts``: random tables,
  and what only the test set contains;
- ``tasks``: instructions and when each is done; ``expert``: the right next action;
- ``drawing``: a table as a picture; ``environment``: all of this as a gymnasium environment;
- ``actions``: actions as the model's tokens, and their statistics;
- ``texts``: the tokenizer; ``dataset``: pictures, instructions and actions as arrays;
- ``architecture``: the sizes; ``checkpoint``: writing the model;
- ``train``, ``evaluate``, ``episode``: the commands ``python -m openvla_tiny.<name>``, run in the
  folder ``tests``; ``plots`` is used by them.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "checkpoint"
RESULTS = FOLDER / "results.json"
TRAINING = FOLDER / "training.json"
STATE = FOLDER / "state.safetensors"
EPISODE = FOLDER / "episode.gif"
