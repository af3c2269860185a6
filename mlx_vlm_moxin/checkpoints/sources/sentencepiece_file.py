"""Llama tokenizers that are published only as SentencePiece's tokenizer.model (Vicuna's).

Reference: ``LlamaConverter`` and ``SentencePieceExtractor`` of transformers 4.40.1, with which
the Prismatic models were trained.
"""

from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

_SPACE = "▁"


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Pairs of pieces that merge into another piece, best piece first."""
    places = {piece: place for place, piece in enumerate(scores)}
    merges = []
    for piece, score in scores.items():
        splits = [(piece[:end], piece[end:]) for end in range(1, len(piece))]
        known = [split for split in splits if split[0] in places and split[1] in places]
        known.sort(key=lambda split: (places[split[0]], places[split[1]]))
        merges += [(score, split) for split in known]
    merges.sort(key=lambda merge: merge[0], reverse=True)
    return [split for _, split in merges]


def read_sentencepiece(path: Path) -> Tokenizer:
    """Read the tokenizer in a SentencePiece file, as BPE with byte fallback.

    A space is added at the beginning of the text and after each special token, as in training;
    newer versions of transformers add it only at the beginning.

    Raises:
        ValueError: if it is not a SentencePiece file, or not Llama's type of model.
    """
    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} is not a SentencePiece model; download it again") from error
    if (model.unk_id(), model.bos_id(), model.eos_id()) != (0, 1, 2):
        raise ValueError(f"{path} does not have Llama's special tokens <unk>, <s> and </s>")
    ids = range(model.get_piece_size())
    scores = {model.id_to_piece(index): model.get_score(index) for index in ids}
    vocabulary = {piece: index for index, piece in enumerate(scores)}
    unknown = model.id_to_piece(model.unk_id())
    bpe = BPE(vocabulary, _merges(scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    special = [index for index in ids if model.is_control(index) or model.is_unknown(index)]
    tokenizer.add_special_tokens(
        [AddedToken(model.id_to_piece(index), normalized=False) for index in special]
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bos = model.id_to_piece(model.bos_id())
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, model.bos_id())]
    )
    return tokenizer
