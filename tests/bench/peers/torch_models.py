"""The PyTorch side's models: the reference's parts in bfloat16, on the GPU if there is one."""

import torch
from reference.generate.model import DINO, SIGLIP, Projector, create_tower
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from .sizes import Sizes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16


def decoder(sizes: Sizes) -> MistralForCausalLM:
    """transformers' Mistral with random weights, without a stop token."""
    text = sizes.config.text_config
    config = MistralConfig(
        hidden_size=text.hidden_size,
        num_hidden_layers=text.num_hidden_layers,
        intermediate_size=text.intermediate_size,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        vocab_size=text.vocab_size,
        rms_norm_eps=text.rms_norm_eps,
        max_position_embeddings=text.max_position_embeddings,
        # Contexts stay below the window: without it PyTorch uses its simplest path.
        sliding_window=None,
        tie_word_embeddings=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device(DEVICE):
        model = MistralForCausalLM._from_config(config, dtype=DTYPE)
    model.generation_config.eos_token_id = None
    return model.to(DEVICE).eval().requires_grad_(False)


class Towers(nn.Module):
    """Both timm towers and the projector, as Prismatic runs them, with random weights."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        vision = sizes.config.vision_config
        widths = []
        with torch.device(DEVICE):
            for name, tower, timm_name in (
                ("dino", vision.dino, DINO),
                ("siglip", vision.siglip, SIGLIP),
            ):
                arguments = (tower.hidden_size, tower.num_hidden_layers, vision.image_size)
                setattr(self, name, create_tower(timm_name, *arguments))
                widths.append(tower.hidden_size)
            self.projector = Projector(sum(widths), sizes.config.text_config.hidden_size)
        self.to(DEVICE, DTYPE).eval().requires_grad_(False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """``[B, 6, S, S]`` pixels to ``[B, num_patches, hidden_size]``."""
        features = []
        for tower, channels in ((self.dino, pixels[:, :3]), (self.siglip, pixels[:, 3:])):
            block = len(tower.blocks) - 2
            features.append(tower.get_intermediate_layers(channels, n={block})[0])
        return self.projector(torch.cat(features, dim=-1))
