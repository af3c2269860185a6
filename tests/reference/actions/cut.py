"""Extracts small reference data from checkpoints with a whole vocabulary.

``python tests/reference/actions/cut.py FULL NAME``: FULL holds ``hf/`` (random weights, Llama's or
Mistral's tokenizer) and ``goldens.json`` and ``goldens.npz``, which the published PyTorch code
computed. ``NAME/`` keeps: of the vocabulary, the rows of ids that occur; of the tokenizer, the
pieces of the instructions, under their ids; of the outputs, those that the tests read.
"""

import argparse
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

HERE = Path(__file__).parent
EMBEDDINGS = "language_model.model.embed_tokens.weight"
OUTPUT = "language_model.lm_head.weight"
ACTION_IDS = range(31744, 32064)
# At the end of every prompt, also if the tokenizer has another id for a space.
SPACE_ID = 29871
SETTINGS = ("config.json", "dataset_statistics.json", "preprocessor_config.json")
TOKENIZER = ("special_tokens_map.json", "tokenizer_config.json")
# Limit above which arrays are kept for the first case of a kind only.
LARGE_ARRAYS = ("inputs_embeds", "hidden_all", "logits_action", "logits_full")


def segments(text: str, vocabulary: dict[str, int], merges: list) -> list[str]:
    """The pieces of ``text`` by byte-pair encoding, without byte fallback."""
    pairs = (tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges)
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    pieces = list(text)
    while len(pieces) > 1:
        rank, place = min(
            (ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(pieces))
        )
        if rank == len(ranks):
            break
        pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
    return pieces


def small_tokenizer(tokenizer: dict[str, Any], prompts: list[str]) -> dict[str, Any]:
    """A tokenizer of the prompts' pieces: the longest piece each time, under the same ids."""
    model = tokenizer["model"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "\n": model["vocab"]["<0x0A>"]}
    vocabulary["▁"] = model["vocab"]["▁"]
    for prompt in prompts:
        for line in ("▁" + prompt.replace(" ", "▁")).split("\n"):
            pieces = segments(line, model["vocab"], model["merges"])
            vocabulary.update((piece, model["vocab"][piece]) for piece in pieces)
    for index, token in enumerate(range(31744, 32000)):
        vocabulary.setdefault(chr(0xE000 + index), token)
    words = {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": ""}
    words |= {"max_input_chars_per_word": 4096, "vocab": vocabulary}
    return {**tokenizer, "model": words}


def cut_weights(source: Path, ids: np.ndarray) -> dict[str, np.ndarray]:
    """bfloat16 as uint16; of the vocabulary's matrices the rows ``ids`` and the actions'."""
    arrays = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, value in mx.load(str(file)).items():
            bits = np.array(value.view(mx.uint16))
            rows = {EMBEDDINGS: ids, OUTPUT: np.array(ACTION_IDS)}.get(name)
            arrays[name] = bits if rows is None else bits[rows]
            if rows is not None:
                arrays[f"{name}/rows"] = rows.astype(np.uint16)
    return arrays


def kept_arrays(arrays: Any) -> dict[str, np.ndarray]:
    """The outputs that the tests read."""
    kept, seen = {}, set()
    for name in arrays.files:
        if name.startswith(("codec", "native", "pixels_native", "projector_native")):
            continue
        large = next((part for part in LARGE_ARRAYS if part in name), None)
        kind = (large, name.split("/")[0] if large else None)
        if large and kind in seen:
            continue
        if large:
            seen.add(kind)
        if not name.startswith("pixels/") or name.endswith(("/photo", "/photo.policy224")):
            kept[name] = arrays[name]
    return kept


def cut(full: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    goldens = json.loads((full / "goldens.json").read_text(encoding="utf-8"))
    # Bytes and characters outside of the first plane have no pieces.
    instructions = goldens["instructions"]
    usable = [i for i, text in enumerate(instructions) if text.isascii()]
    template = "In: What action should the robot take to {}?\nOut:"
    prompts = [template.format(instructions[i].lower()) for i in usable]
    tokenizer = json.loads((full / "hf/tokenizer.json").read_text(encoding="utf-8"))
    small = small_tokenizer(tokenizer, prompts)
    goldens["cases"] = [case for case in goldens["cases"] if case["instruction"] in usable]
    if "native" in goldens:
        native = goldens["native"]
        # Native runs drop the marker; then the longest pieces are not those of byte-pair encoding.
        plain = [i for i in usable if "<image>" not in instructions[i]]
        native["cases"] = [case for case in native["cases"] if case["instruction"] in plain]
    for name in ("codec_text", "deploy_prompts", "libero", "error_without_key"):
        goldens.pop(name, None)
    text = json.dumps(small, ensure_ascii=False, separators=(",", ":"))
    (target / "tokenizer.json").write_text(text, encoding="utf-8")
    (target / "goldens.json").write_text(json.dumps(goldens), encoding="utf-8")
    arrays = kept_arrays(np.load(full / "goldens.npz"))
    np.savez_compressed(target / "goldens.npz", **arrays)
    vocabulary = small["model"]["vocab"].values()
    weights = cut_weights(full / "hf", np.unique([*vocabulary, SPACE_ID, *ACTION_IDS]))
    np.savez_compressed(target / "weights.npz", **weights)
    for path in (full / "hf").iterdir():
        if path.name in (*SETTINGS, *TOKENIZER) or path.suffix == ".pt":
            shutil.copyfile(path, target / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("full", type=Path)
    parser.add_argument("name")
    args = parser.parse_args()
    cut(args.full, HERE / args.name)


if __name__ == "__main__":
    main()
