"""Comparison of recomputed goldens with stored ones."""

from typing import Any

import numpy as np

from .goldens import Arrays

# Largest differences by kind of array; README.md says where they come from.
TOLERANCES = {
    "pixels": 0.0,
    "pixels_native": 0.0,
    "pixels_pillow13": 0.0,
    "dino_pos_embed": 1e-6,
    "dino": 5e-5,
    "siglip": 5e-5,
    "projector": 5e-5,
    "logits_last": 5e-4,
    "logits": 5e-4,
    "text_only_logits": 5e-4,
}
RELATIVE = ("dino", "siglip", "projector")


def kind_of(name: str) -> str:
    """Kind of an array by its name in goldens.npz."""
    first, second, *_ = name.split("/")
    return first if first.startswith("pixels") else second


def deviation(kind: str, value: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Absolute differences; of features, in standard deviations of the reference."""
    difference = np.abs(value.astype(np.float64) - reference.astype(np.float64))
    difference = np.nan_to_num(difference, nan=np.inf)
    return difference / reference.std() if kind in RELATIVE else difference


def compare(stored: Arrays, stored_json: Any, computed: Arrays, computed_json: Any) -> bool:
    """Print the largest difference of every kind; true if all are within tolerance."""
    good = True
    if set(stored) != set(computed):
        print(f"names differ: {sorted(set(stored) ^ set(computed))}")
        good = False
    largest: dict[str, tuple[float, str]] = {}
    counts = dict.fromkeys(TOLERANCES, 0)
    for name in sorted(set(stored) & set(computed)):
        kind = kind_of(name)
        counts[kind] += 1
        if stored[name].shape != computed[name].shape:
            print(f"{name}: shape {computed[name].shape}, stored {stored[name].shape}")
            good = False
            continue
        value = float(deviation(kind, computed[name], stored[name]).max())
        largest[kind] = max(largest.get(kind, (-1.0, "")), (value, name))
    for kind, (value, name) in largest.items():
        verdict = "ok" if value <= TOLERANCES[kind] else "TOO LARGE"
        unit = "std" if kind in RELATIVE else "abs"
        print(
            f"{kind:17} {counts[kind]:3} arrays  largest {value:.1e} {unit}"
            f"  allowed {TOLERANCES[kind]:.0e}  {verdict}  ({name})"
        )
        good = good and verdict == "ok"
    return compare_json(stored_json, computed_json) and good


def compare_json(stored: Any, computed: Any) -> bool:
    """Print whether prompts, tokenizer cases and greedy answers are equal."""
    good = True
    for key in ("num_patches", "prompts", "tokenize"):
        equal = stored[key] == computed[key]
        print(f"{key:17} {'equal' if equal else 'DIFFERENT'}")
        good = good and equal
    margins = []
    different = [] if stored["generate"].keys() == computed["generate"].keys() else ["runs"]
    for run, images in stored["generate"].items():
        for name, answers in images.items():
            for index, answer in enumerate(answers):
                other = computed["generate"][run][name][index]
                margins.append(abs(answer["min_margin"] - other["min_margin"]))
                if (answer["tokens"], answer["text"]) != (other["tokens"], other["text"]):
                    different.append(f"{run}/{name}/{index}")
    verdict = f"DIFFERENT: {different}" if different else "equal"
    print(f"{'generate':17} {len(margins):3} answers {verdict}, margins to {max(margins):.1e}")
    return good and not different
