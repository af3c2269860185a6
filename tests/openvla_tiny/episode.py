"""Drive an episode through a running server: ``python -m openvla_tiny.episode URL``.

An ordinary client: it uses the environment, ``requests`` and ``json_numpy``, and nothing of this
package. It writes the episode as an animated GIF.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import json_numpy
import numpy as np
import requests
from PIL import Image, ImageDraw

from . import EPISODE
from .drawing import SIZE
from .environment import TableEnv

CAPTION = 22
FRAME_MS = 180
LAST_FRAME_MS = 1500


def remote_policy(url: str) -> Callable[[np.ndarray, str], np.ndarray]:
    """A function that sends a picture and an instruction to ``POST /act``."""

    def act(picture: np.ndarray, instruction: str) -> np.ndarray:
        body = json_numpy.dumps({"image": picture, "instruction": instruction})
        headers = {"Content-Type": "application/json"}
        answer = requests.post(f"{url}/act", data=body, headers=headers, timeout=60)
        answer.raise_for_status()
        return json_numpy.loads(answer.text)

    return act


def play(
    environment: TableEnv, seed: int, policy: Callable[[np.ndarray, str], np.ndarray]
) -> tuple[bool, str, list[np.ndarray]]:
    """One episode: whether it succeeded, the instruction, and its pictures."""
    picture, info = environment.reset(seed=seed)
    pictures = [picture]
    while True:
        action = policy(picture, info["instruction"])
        picture, reward, terminated, truncated, _ = environment.step(action)
        pictures.append(picture)
        if terminated or truncated:
            return reward == 1, info["instruction"], pictures


def save_gif(pictures: list[np.ndarray], instruction: str, path: Path) -> None:
    """The pictures as an animation, the instruction above them."""
    frames = []
    for picture in pictures:
        frame = Image.new("RGB", (SIZE, SIZE + CAPTION), "white")
        frame.paste(Image.fromarray(picture), (0, CAPTION))
        ImageDraw.Draw(frame).text((5, 5), instruction, fill="black")
        frames.append(frame.quantize(64))
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True
    )


def run_episode(url: str, kind: str, seed: int, output: Path) -> tuple[bool, str]:
    """Run one episode through the server at ``url`` and write it as a GIF.

    Returns:
        Whether the task was done, and a sentence that says so.
    """
    environment = TableEnv("test", kind)
    succeeded, instruction, pictures = play(environment, seed, remote_policy(url))
    save_gif(pictures, instruction, output)
    outcome = "done" if succeeded else "not done"
    return succeeded, f"{instruction}: {outcome} after {len(pictures) - 1} actions"


def main() -> int:
    """Run an episode and print the outcome; 0 if the task was done."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", help="of the server, such as http://127.0.0.1:8080")
    parser.add_argument("--kind", default="into", help="of task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=EPISODE, help="GIF to write")
    args = parser.parse_args()
    succeeded, outcome = run_episode(args.url, args.kind, args.seed, args.output)
    print(outcome)
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
