"""The tokenizer: Llama's kind of BPE with byte fallback, trained on the task's words."""

import json
import re
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers

from .questions import KINDS, possible_answers, prompt
from .scenes import draw_scene

SPACE = "\u2581"
SPECIALS = UNKNOWN, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<PAD>"
BOS_ID, EOS_ID = 1, 2
# Single-character tokens besides those of the task's words; all other characters become bytes.
_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:?'"
_CORPUS_PICTURES = 2000


def corpus_words() -> set[str]:
    """Every word of the training texts, its leading space written as Llama writes it."""
    words = set()
    for index in range(_CORPUS_PICTURES):
        scene = draw_scene("train", index)
        for kind in KINDS:
            for answer, texts in possible_answers(scene, kind, "train").items():
                for text in texts:
                    pieces = re.findall(r" ?\w+|[^\w\s]", f" {prompt(text)} {answer}")
                    words.update(piece.replace(" ", SPACE) for piece in pieces)
    return words


def _bpe(words: Iterable[str], multiple: int, bytes_last: bool) -> models.BPE:
    """Merges that make each word one token; ids are specials, bytes, merges, characters."""
    trained = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=1 << 16,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(SPACE + _CHARACTERS),
    )
    trained.train_from_iterator(sorted(words), trainer)
    by_id = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    merged = [token for token, _ in by_id if len(token) > 1]
    characters = [token for token, _ in by_id if len(token) == 1]
    specials, single_bytes = [UNKNOWN, BOS, EOS], [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [*merged, *characters]
    rest = [*pieces, *single_bytes] if bytes_last else [*single_bytes, *pieces]
    tokens = [*specials, *rest]
    tokens += [f"{SPACE}<{index}>" for index in range(-len(tokens) % multiple)]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    return models.BPE(vocab, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)


def train_tokenizer() -> Tokenizer:
    """The tokenizer of this task's words."""
    return build_tokenizer(corpus_words())


def build_tokenizer(words: Iterable[str], multiple: int = 1, bytes_last: bool = False) -> Tokenizer:
    """A tokenizer built as Moxin's is: normalizer, decoder and special tokens are Llama's.

    ``<PAD>`` comes last, as the first id above the vocabulary proper.

    Args:
        words: each becomes one token.
        multiple: the vocabulary before ``<PAD>`` is padded to a multiple of it.
        bytes_last: bytes come after the words, not before them.
    """
    tokenizer = Tokenizer(_bpe(words, multiple, bytes_last))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, BOS_ID)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIALS]
    )
    return tokenizer


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """Names and contents of the tokenizer's files, as the published checkpoints have them."""
    flags = ("lstrip", "normalized", "rstrip", "single_word")
    special = {t: {"content": t, **dict.fromkeys(flags, False)} for t in SPECIALS}
    roles = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIALS))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {**entry, "special": True}
            for token, entry in special.items()
        },
        **roles,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 2048,
        "padding_side": "right",
        "processor_class": "PrismaticProcessor",
        "tokenizer_class": "LlamaTokenizer",
        "use_default_system_prompt": False,
    }
    special_map = {role: special[token] for role, token in roles.items()}
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(config, indent=2),
        "special_tokens_map.json": json.dumps(special_map, indent=2),
    }
