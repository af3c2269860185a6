"""The reference model of a member: timm's towers, a projector, transformers' decoder."""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from .specs import Member, Tower

State = dict[str, torch.Tensor]
_DECODERS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
}


@dataclass
class Weights:
    """State dicts: the towers' under timm's names, the projector's as ``fc1`` and so on."""

    towers: list[State]
    projector: State
    language_model: State


def create_tower(tower: Tower, size: int, act: str | None) -> nn.Module:
    """timm's tower, narrowed, for pictures of ``size`` pixels."""
    return timm.create_model(
        tower.timm_id,
        embed_dim=tower.width,
        depth=tower.depth,
        img_size=size,
        num_classes=0,
        **({"act_layer": act} if act else {}),
    )


def projector_widths(kind: str, vision: int, hidden: int) -> list[int]:
    """Widths before, between and after the linear layers."""
    return {
        "linear": [vision, hidden],
        "gelu-mlp": [vision, hidden, hidden],
        "fused-gelu-mlp": [vision, 4 * vision, hidden, hidden],
    }[kind.rpartition("+")[2]]


class Projector(nn.Module):
    """Linear layers ``fc1``, ``fc2`` and so on with the exact GELU between them."""

    def __init__(self, widths: list[int]):
        super().__init__()
        self.names = [f"fc{1 + index}" for index in range(len(widths) - 1)]
        for name, before, after in zip(self.names, widths, widths[1:]):
            setattr(self, name, nn.Linear(before, after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = getattr(self, name)(x if name == "fc1" else nn.functional.gelu(x))
        return x


def create_language_model(member: Member, vocab_size: int, eps: float) -> nn.Module:
    """transformers' decoder."""
    config, kind = _DECODERS[member.decoder]
    return kind(config(**member.text, vocab_size=vocab_size, rms_norm_eps=eps))


class ReferenceModel(nn.Module):
    """Computes in float32.

    Args:
        acts: activation of each tower.
        eps: of the decoder's norms.
    """

    def __init__(self, member: Member, weights: Weights, acts: list[str | None], eps: float):
        super().__init__()
        self.towers = nn.ModuleList()
        for tower, act, state in zip(member.towers, acts, weights.towers):
            module = create_tower(tower, member.px, act)
            state = {key: value.float() for key, value in state.items()}
            state = timm.models.vision_transformer.checkpoint_filter_fn(state, module)
            module.load_state_dict(state)
            self.towers.append(module)
        vocab_size, hidden = weights.language_model["lm_head.weight"].shape
        vision = sum(tower.width for tower in member.towers)
        self.projector = Projector(projector_widths(member.arch_specifier, vision, hidden))
        self.projector.load_state_dict(weights.projector)
        self.language_model = create_language_model(member, vocab_size, eps)
        self.language_model.load_state_dict(weights.language_model)
        self.eval().requires_grad_(False)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patch tokens ``[1, N, width]`` after the towers' second-to-last blocks."""
        parts = pixels[None].split(3, dim=1)
        outputs = [
            tower.get_intermediate_layers(part, n={len(tower.blocks) - 2})[0]
            for tower, part in zip(self.towers, parts)
        ]
        return torch.cat(outputs, dim=-1)

    def embed(self, input_ids: list[int], visual: torch.Tensor) -> torch.Tensor:
        """``[1, T, hidden_size]``: ``<s>``, visual tokens, the rest of the prompt."""
        text = self.language_model.get_input_embeddings()(torch.tensor(input_ids))
        return torch.cat([text[:1], visual, text[1:]])[None]

    def logits(self, embeds: torch.Tensor) -> torch.Tensor:
        """``[T, vocab_size]``."""
        return self.language_model(inputs_embeds=embeds).logits[0]

    def answer(self, embeds: torch.Tensor, count: int, eos: int) -> tuple[list[int], float]:
        """Greedy tokens, and the smallest gap of the two largest logits on the way."""
        output: Any = self.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=eos,
            pad_token_id=eos,
            output_logits=True,
            return_dict_in_generate=True,
        )
        top = torch.cat(output.logits).float().topk(2).values
        return output.sequences[0].tolist(), (top[:, 0] - top[:, 1]).min().item()
