"""A processor without tokenizer files, for measuring models with random weights.

A text gets about as many tokens as Llama's tokenizer produces for English; their ids are
meaningless.
"""

from mlx_vlm.models.moxin.config import ModelConfig
from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from mlx_vlm.utils import StoppingCriteria
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Without an end token, an answer always has the requested number of tokens.
_SPECIALS = {"unk_token": "<unk>", "bos_token": "<s>", "pad_token": "<PAD>"}
# A single word is one token, as required for the words that tasks compare.
_PIECES = Regex(r"\A\w+\z|[\s\S]{1,4}")
_TEMPLATE = "In: {{ messages[-1]['content'] }}\nOut:"


def _tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that gives one token, always the same, for every four characters."""
    vocabulary = {token: index for index, token in enumerate(_SPECIALS.values())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIALS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_PIECES, "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIALS)
    fast.chat_template = _TEMPLATE
    fast.stopping_criteria = StoppingCriteria([], fast)
    return fast


def stand_in_processor(config: ModelConfig) -> MoxinProcessor:
    """A processor for random weights of ``config``."""
    vision = config.vision_config
    return MoxinProcessor(
        MoxinImageProcessor(vision.image_size),
        _tokenizer(),
        image_token_index=config.image_token_index,
        vocab_size=config.text_config.vocab_size,
        num_image_tokens=vision.num_patches,
    )
