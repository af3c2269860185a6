"""``python -m bench.full_size FOLDER``, run in ``tests``: random weights as checkpoints.

Has Moxin's sizes, for measurements that need a checkpoint on a disk: start times, a server. A
token is a word.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from mlx.utils import tree_flatten
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from mlx_vlm_moxin.bench import models

from .peers.sizes import SMALL, Sizes
from .qwen2_vl import write_qwen2_vl

SPECIALS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
TEMPLATE = "In: {{ messages[-1]['content'] }}\nOut:"


def tokenizer(pad_token_id: int) -> PreTrainedTokenizerFast:
    """A tokenizer of made-up words: ``w3``, ``w4`` and so on; any other word is unknown."""
    words = [*SPECIALS.values(), *(f"w{index}" for index in range(3, pad_token_id)), "<PAD>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    words_to_ids = Tokenizer(tokenizer_models.WordLevel(vocabulary, SPECIALS["unk_token"]))
    words_to_ids.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words_to_ids, pad_token="<PAD>", add_bos_token=True, **SPECIALS
    )
    fast.chat_template = TEMPLATE
    return fast


def write_checkpoint(folder: Path, bits: int, sizes: Sizes) -> None:
    """A checkpoint that stock mlx-vlm loads where this package is installed."""
    config = sizes.config
    with mock.patch.object(models, "real_config", return_value=config):
        model = models.random_model(bits)
    from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor
    from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor

    from mlx_vlm_moxin.checkpoints.layer_settings import quantization_of
    from mlx_vlm_moxin.checkpoints.safetensors_writer import write_weights
    from mlx_vlm_moxin.checkpoints.settings_files import write_settings

    processor = MoxinProcessor(
        MoxinImageProcessor(config.vision_config.image_size),
        tokenizer(config.pad_token_id),
        image_token_index=config.image_token_index,
        vocab_size=config.text_config.vocab_size,
        num_image_tokens=config.vision_config.num_patches,
    )
    folder.mkdir(parents=True)
    weights = dict(tree_flatten(model.parameters()))
    write_weights(folder, weights, weights.items())
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": config.pad_token_id}
    write_settings(folder, config, quantization_of(model), processor, ids)


def main(argv: Sequence[str] | None = None) -> None:
    """The command; an existing checkpoint is kept."""
    parser = argparse.ArgumentParser("python -m bench.full_size", description=__doc__)
    parser.add_argument("folder", type=Path, help="gets a folder for each width: 16, 8, 4")
    parser.add_argument("--bits", type=int, nargs="*", default=[16, 8, 4], choices=models.BITS)
    parser.add_argument("--qwen2-vl", action="store_true", help="also mlx-vlm's Qwen2-VL 7B")
    parser.add_argument("--small", action="store_true", help="tiny sizes: shows that it runs")
    args = parser.parse_args(argv)
    sizes = SMALL if args.small else Sizes()
    for bits in args.bits:
        folder = args.folder / str(bits)
        if not folder.exists():
            write_checkpoint(folder, bits, sizes)
            models.free()
        _print_size(folder)
    if args.qwen2_vl:
        folder = args.folder / "qwen2-vl"
        if not folder.exists():
            write_qwen2_vl(folder, tokenizer, args.small)
        _print_size(folder)


def _print_size(folder: Path) -> None:
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {size / 1e9:.2f} GB", flush=True)


if __name__ == "__main__":
    main()
