"""The tokenizer: moxin-tiny's kind, trained on the instructions."""

import re

from moxin_tiny.scenes import COLOURS, SHAPES
from moxin_tiny.texts import SPACE, build_tokenizer
from tokenizers import Tokenizer

from .tasks import WORDINGS

ACTION_TOKENS = 256
# As in Llama-2, the vocabulary without <PAD> is padded to a multiple of 64.
VOCAB_MULTIPLE = 64


# The start of every prompt.
PROMPT_START = "In: What action should the robot take to"


def prompt(instruction: str) -> str:
    """OpenVLA's prompt, which the action's tokens follow."""
    return f"{PROMPT_START} {instruction.lower()}?\nOut:"


def words() -> set[str]:
    """Every word of every instruction, its leading space written as Llama writes it."""
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    texts = [
        prompt(text.format(item=name, other=name))
        for kind in WORDINGS.values()
        for text in kind
        for name in names
    ]
    pieces = {piece for text in texts for piece in re.findall(r" ?\w+|[^\w\s]", f" {text}")}
    return {piece.replace(" ", SPACE) for piece in pieces}


def train_tokenizer() -> Tokenizer:
    """Words, then bytes, then unused tokens, then ``<PAD>``.

    The last 256 tokens before ``<PAD>`` are also the actions' tokens, as OpenVLA overwrites the
    last 256 of Llama's vocabulary. Here they are bytes that no instruction has, and unused tokens.
    """
    return build_tokenizer(words(), VOCAB_MULTIPLE, bytes_last=True)
