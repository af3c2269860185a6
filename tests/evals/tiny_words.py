"""moxin-tiny with the words that the tasks compare, each as one token.

Its own tokenizer has single tokens for the words of its questions only, and it knows none of
the tasks' instructions. Here tokens of bytes that no text needs become "Yes", "No", "True",
"False" and the letters up to P, with the weights of "yes", "no" and the numbers up to four;
and the tokenizer drops the instructions. So the model answers the tasks as well as it answers
its own questions.
"""

import json
import shutil
from pathlib import Path

import mlx.core as mx
from moxin_tiny import CHECKPOINT
from moxin_tiny.questions import NUMBERS

from mlx_vlm_moxin.evals.tasks import CHOICE, REFERRING, SHORT, TRUE_FALSE, UNCERTAIN

SPACE = "\u2581"
# New word -> the word whose weights it copies.
MEANINGS = {"Yes": "yes", "No": "no", "True": "yes", "False": "no"}
MEANINGS |= dict(zip("ABCDE", NUMBERS)) | dict.fromkeys("FGHIJKLMNOP", "shapes")
_MATRICES = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
_CHOICES = {"Regex": r"(\n[A-P]\. \w+)+(?=\nAnswer with)"}


def _add_tokens(model: dict) -> dict[str, int]:
    """Put the words into a BPE model, and return their ids."""
    vocab, first, last = model["vocab"], [], []
    spare = iter([f"<0x{byte:02X}>" for byte in range(0x80, 0x100)])
    for word in MEANINGS:
        known = SPACE
        for letter in word:
            if known + letter not in vocab:
                vocab[known + letter] = vocab.pop(next(spare))
                # Before other merges, which would join a word's last letters; but not for
                # single letters, with which words begin.
                (first if len(word) > 1 else last).append([known, letter])
            known += letter
    model["merges"] = [*first, *model["merges"], *last]
    return {word: vocab[SPACE + word] for word in MEANINGS}


def _drop(pattern: dict[str, str]) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": ""}


def _instructions() -> list[dict]:
    """Normalizers that drop what the tasks write around a question."""
    parts = [part for text in (SHORT, TRUE_FALSE, REFERRING) for part in text.split("{text}")]
    parts += [UNCERTAIN.removeprefix("{text}"), CHOICE.partition("{choices}")[2]]
    # The longest first: one ends with another.
    parts = sorted(filter(lambda part: len(part) > 1, parts), key=len, reverse=True)
    return [_drop(_CHOICES), *(_drop({"String": part}) for part in parts)]


def write_checkpoint(directory: Path, dtype: mx.Dtype = mx.float32) -> Path:
    """moxin-tiny's checkpoint in ``directory``, its tokenizer and weights so changed."""
    shutil.copytree(CHECKPOINT, directory)
    file = directory / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    sources = {word: vocab[SPACE + meaning] for word, meaning in MEANINGS.items()}
    ids = _add_tokens(tokenizer["model"])
    normalizers = tokenizer["normalizer"]["normalizers"]
    tokenizer["normalizer"]["normalizers"] = [*_instructions(), *normalizers]
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    weights = mx.load(str(directory / "model.safetensors"))
    for name in _MATRICES:
        for word, row in ids.items():
            # A little less, so that generated answers still use the model's original words.
            weights[name][row] = 0.99 * weights[name][sources[word]]
    weights = {name: value.astype(dtype) for name, value in weights.items()}
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "pt"})
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    name = str(dtype).removeprefix("mlx.core.")
    config["torch_dtype"] = config["text_config"]["torch_dtype"] = name
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory
