"""Asks the bundled model moxin-tiny a question whose correct answer is known.

The question uses the same code as one to Moxin-7B: tokenizer, image processor, towers, decoder
and detokenizer.
"""

import time
from pathlib import Path

from mlx_vlm_moxin.doctor.check import FAILED, OK, Check

# The folder in an installed package, and in a clone.
_PLACES = (
    Path(__file__).with_name("moxin_tiny"),
    Path(__file__).parents[2] / "tests" / "moxin_tiny",
)
QUESTION = "Describe the image."
ANSWER = "A large red circle, a large green triangle and a small blue star."


def bundled() -> Path:
    """The folder with ``checkpoint`` and ``demo.png``.

    Raises:
        FileNotFoundError: if no such folder exists.
    """
    for place in _PLACES:
        if (place / "checkpoint" / "config.json").is_file():
            return place
    raise FileNotFoundError(f"moxin-tiny is missing from {_PLACES[0]}; install the package again")


def self_test() -> Check:
    """Load moxin-tiny and check its description of a picture."""
    from mlx_vlm_moxin.library.generate import stream_text
    from mlx_vlm_moxin.library.load import load

    folder, start = bundled(), time.perf_counter()
    model, processor = load(folder / "checkpoint")
    answer = "".join(
        stream_text(model, processor, QUESTION, folder / "demo.png", temperature=0.0, max_tokens=64)
    )
    seconds = time.perf_counter() - start
    values = {"question": QUESTION, "answer": answer, "expected": ANSWER, "seconds": seconds}
    if answer == ANSWER:
        return Check("self-test", OK, f"the correct answer after {seconds:.1f} s", values=values)
    found = f"{answer!r} instead of {ANSWER!r}"
    return Check("self-test", FAILED, found, "report this, with the lines above", values)
