"""Config and tokenizer of a native checkpoint's language model."""

import json

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from source_checkpoints import HUB, NATIVE_FILES, copy_checkpoint
from support import REFERENCE

from mlx_vlm_moxin.checkpoints.language_models import LANGUAGE_MODELS, LLAMA_2, licence_note
from mlx_vlm_moxin.checkpoints.prismatic_models import PRISMATIC_MODELS
from mlx_vlm_moxin.checkpoints.sources.language_model import (
    SENTENCEPIECE_FILE,
    fetch_language_model,
    read_tokenizer,
)

TEXTS = ["What is shown?", "two  spaces", "line\none", "café 你好 🙂", "1234"]


CORPUS = [line for line in (REFERENCE / "README.md").read_text("utf-8").splitlines() if line]


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """A directory with a small tokenizer.model of Llama's kind."""
    directory = tmp_path_factory.mktemp("llm")
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return directory


def test_a_tokenizer_in_sentencepieces_format_gives_sentencepieces_ids(sentencepiece):
    reference = SentencePieceProcessor(model_file=str(sentencepiece / SENTENCEPIECE_FILE))
    tokenizer = read_tokenizer(sentencepiece, 2048, "vicuna")
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == [1, *reference.encode(text)]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<PAD>", 600)


def test_long_texts_merge_in_sentencepieces_order(sentencepiece):
    reference = SentencePieceProcessor(model_file=str(sentencepiece / SENTENCEPIECE_FILE))
    tokenizer = read_tokenizer(sentencepiece, 2048, "vicuna")
    # Special tokens in a text are control characters, which SentencePiece does not encode.
    special = tokenizer.all_special_tokens
    texts = [line for line in CORPUS if not any(token in line for token in special)]
    assert len(texts) > 20
    for text in texts:
        assert tokenizer(text)["input_ids"] == [1, *reference.encode(text)], text


def test_splits_of_one_piece_are_in_the_vocabularys_order(sentencepiece):
    tokenizer = read_tokenizer(sentencepiece, 2048, "vicuna")
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    splits: dict[str, list[list[int]]] = {}
    for pair in model["merges"]:
        splits.setdefault("".join(pair), []).append([model["vocab"][piece] for piece in pair])
    assert max(map(len, splits.values())) > 1
    assert all(pairs == sorted(pairs) for pairs in splits.values())


def test_text_after_an_answers_end_begins_with_a_space_as_in_training(sentencepiece):
    reference = SentencePieceProcessor(model_file=str(sentencepiece / SENTENCEPIECE_FILE))
    ids = read_tokenizer(sentencepiece, 2048, "vicuna")("a</s>b")["input_ids"]
    assert ids == [1, *reference.encode("a"), 2, *reference.encode("b")]


def test_tokenizer_json_wins(sentencepiece, tmp_path):
    llm = copy_checkpoint(HUB / "llm", tmp_path / "llm")
    (llm / SENTENCEPIECE_FILE).write_bytes((sentencepiece / SENTENCEPIECE_FILE).read_bytes())
    assert len(read_tokenizer(llm, 2048, "pure")) == len(NATIVE_FILES.open().processor.tokenizer)


def test_damaged_and_other_models_are_refused_in_one_line(sentencepiece, tmp_path):
    path = tmp_path / SENTENCEPIECE_FILE
    path.write_bytes((sentencepiece / SENTENCEPIECE_FILE).read_bytes()[:500])
    with pytest.raises(ValueError, match="is not a SentencePiece model; download it again"):
        read_tokenizer(tmp_path, 2048, "pure")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"No tokenizer\.json and no tokenizer\.model in"):
        read_tokenizer(tmp_path, 2048, "pure")


def test_an_unknown_language_model_must_be_given():
    with pytest.raises(ValueError, match=r"'llama3-8b-pure' is not known; give --llm"):
        fetch_language_model("llama3-8b-pure", None)


def test_every_published_model_but_phi_has_a_known_language_model():
    unknown = {
        name
        for name, model in PRISMATIC_MODELS.items()
        if model.llm_backbone_id not in LANGUAGE_MODELS
    }
    assert unknown == {"phi-2+3b"}


def test_the_licence_of_the_language_model_decides_the_notices():
    assert licence_note(None) == ""
    assert licence_note("moxin-7b-pure") == ""
    assert licence_note("llama2-7b-pure") == LLAMA_2.note
    assert "Copyright (c) Meta" in LLAMA_2.note
    assert licence_note("other").startswith("The licence of the language model other applies")


@pytest.mark.parametrize(
    ("name", "layers", "width", "mlp_width", "heads", "kv_heads"),
    [
        ("llama2-7b-pure", 32, 4096, 11008, 32, 32),
        ("vicuna-v15-7b", 32, 4096, 11008, 32, 32),
        ("llama2-13b-pure", 40, 5120, 13824, 40, 40),
        ("vicuna-v15-13b", 40, 5120, 13824, 40, 40),
        ("mistral-v0.1-7b-instruct", 32, 4096, 14336, 32, 8),
        ("moxin-7b-pure", 36, 4096, 14336, 32, 8),
    ],
)
def test_the_language_models_have_their_published_sizes(
    name, layers, width, mlp_width, heads, kv_heads
):
    config = LANGUAGE_MODELS[name].text_config
    assert (config["num_hidden_layers"], config["hidden_size"]) == (layers, width)
    assert (config["intermediate_size"], config["vocab_size"]) == (mlp_width, 32064)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (heads, kv_heads)
