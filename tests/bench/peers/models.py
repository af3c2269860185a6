"""The models of all sides: built when first needed, freed after their last measure."""

import gc
import sys
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_vlm_moxin.bench import models as bench_models

from .sizes import Sizes

GROUP_SIZE = 64


def ours(sizes: Sizes, bits: int = 16) -> nn.Module:
    """The benchmark's Moxin with random weights."""
    with mock.patch.object(bench_models, "real_config", return_value=sizes.config):
        return bench_models.random_model(bits, GROUP_SIZE)


def mlx_lm_decoder(sizes: Sizes, bits: int = 16) -> nn.Module:
    """mlx-lm's Mistral in the decoder's sizes, with random weights.

    At 8 bits everything that mlx-lm's converter would quantise is quantised.
    """
    from mlx_lm.models.llama import Model, ModelArgs

    text = sizes.config.text_config
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
    names += ("num_key_value_heads", "head_dim", "rms_norm_eps", "vocab_size", "rope_theta")
    arguments = {name: getattr(text, name) for name in names}
    model = Model(ModelArgs(model_type="llama", tie_word_embeddings=False, **arguments))
    for path, module in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        module.update(tree_map(_random_like, module.parameters()))
        if bits < 16 and hasattr(module, "to_quantized"):
            module = module.to_quantized(group_size=GROUP_SIZE, bits=bits)
            model.update_modules(tree_unflatten([(path, module)]))
        mx.eval(module.parameters())
    model.eval()
    return model


def _random_like(parameter: mx.array) -> mx.array:
    return (0.02 * mx.random.normal(parameter.shape)).astype(mx.bfloat16)


def torch_decoder(sizes: Sizes) -> Any:
    """transformers' Mistral in bfloat16."""
    from .torch_models import decoder

    return decoder(sizes)


def torch_towers(sizes: Sizes) -> Any:
    """timm's towers and Prismatic's projector in bfloat16."""
    from .torch_models import Towers

    return Towers(sizes)


BUILDERS: dict[str, Callable[[Sizes], Any]] = {
    "ours": ours,
    "ours 8 bits": lambda sizes: ours(sizes, 8),
    "ours 4 bits": lambda sizes: ours(sizes, 4),
    "mlx-lm": mlx_lm_decoder,
    "mlx-lm 8 bits": lambda sizes: mlx_lm_decoder(sizes, 8),
    "mlx-lm 4 bits": lambda sizes: mlx_lm_decoder(sizes, 4),
    "torch decoder": torch_decoder,
    "torch towers": torch_towers,
}


class Models:
    """Models by name, in one run's sizes."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = BUILDERS[name](self.sizes)
        return self._built[name]

    def keep(self, names: Iterable[str]) -> None:
        """Free every model that is not in ``names``."""
        for name in set(self._built) - set(names):
            del self._built[name]
        torch = sys.modules.get("torch")
        if torch is not None:
            torch._dynamo.reset()  # compiled functions keep references to their models
        gc.collect()
        mx.clear_cache()
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
