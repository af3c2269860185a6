"""The reference model: timm's towers, a fused GELU projector, transformers' Mistral."""

from typing import Any

import timm
import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from .layouts import Weights

DINO = "vit_large_patch14_reg4_dinov2"
SIGLIP = "vit_so400m_patch14_siglip_224"


def create_tower(name: str, width: int, depth: int, image_size: int) -> nn.Module:
    """timm's ``name``, narrowed."""
    return timm.create_model(name, embed_dim=width, depth=depth, img_size=image_size, num_classes=0)


def load_tower(name: str, state: dict[str, torch.Tensor], image_size: int) -> nn.Module:
    """timm's ``name`` with the sizes and values of ``state``, its position grid resampled."""
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    tower = create_tower(name, state["pos_embed"].shape[-1], depth, image_size)
    state = {key: value.float() for key, value in state.items()}
    tower.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(state, tower))
    return tower


class Projector(nn.Module):
    """Prismatic's ``no-align+fused-gelu-mlp``."""

    def __init__(self, vision_size: int, hidden_size: int):
        super().__init__()
        self.fc1 = nn.Linear(vision_size, 4 * vision_size)
        self.fc2 = nn.Linear(4 * vision_size, hidden_size)
        self.fc3 = nn.Linear(hidden_size, hidden_size)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(self.act(self.fc2(self.act(self.fc1(x)))))


def create_language_model(config: dict[str, Any], vocab_size: int) -> MistralForCausalLM:
    """transformers' Mistral; what ``config`` leaves out takes the library's defaults."""
    return MistralForCausalLM(MistralConfig.from_dict({**config, "vocab_size": vocab_size}))


class ReferenceModel(nn.Module):
    """Computes in the dtype that it is cast to, float32 at first."""

    def __init__(self, weights: Weights, image_size: int):
        super().__init__()
        self.dino = load_tower(DINO, weights.dino, image_size)
        self.siglip = load_tower(SIGLIP, weights.siglip, image_size)
        vision_size = weights.projector["fc1.weight"].shape[1]
        self.projector = Projector(vision_size, weights.projector["fc3.weight"].shape[0])
        self.projector.load_state_dict(weights.projector)
        vocab_size = weights.language_model["lm_head.weight"].shape[0]
        self.language_model = create_language_model(weights.text_config, vocab_size)
        self.language_model.load_state_dict(weights.language_model)
        self.eval().requires_grad_(False)

    def features(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Outputs ``[num_patches, width]`` of both towers and the projector for one picture.

        A tower's are the patch tokens after its second-to-last block, without final norm.
        """
        pixels = pixels[None].to(self.projector.fc1.weight.dtype)
        outputs = {}
        for name, tower, channels in (
            ("dino", self.dino, pixels[:, :3]),
            ("siglip", self.siglip, pixels[:, 3:]),
        ):
            block = len(tower.blocks) - 2
            outputs[name] = tower.get_intermediate_layers(channels, n={block})[0]
        fused = torch.cat([outputs["dino"], outputs["siglip"]], dim=-1)
        outputs["projector"] = self.projector(fused)
        return {name: output[0] for name, output in outputs.items()}

    def embed(self, input_ids: list[int], visual: torch.Tensor | None = None) -> torch.Tensor:
        """Embeddings ``[1, T, hidden_size]``: ``<s>``, visual tokens, the rest of the prompt."""
        text = self.language_model.get_input_embeddings()(torch.tensor(input_ids))
        parts = [text] if visual is None else [text[:1], visual, text[1:]]
        return torch.cat(parts)[None]

    def logits(self, embeds: torch.Tensor) -> torch.Tensor:
        """Logits ``[T, vocab_size]`` at every position of one prompt."""
        return self.language_model(inputs_embeds=embeds).logits[0]

    def answer(
        self, embeds: torch.Tensor, new_tokens: int, eos_token_id: int
    ) -> tuple[list[int], float]:
        """Greedy tokens, end token included, and the smallest top-1/top-2 logit gap."""
        output = self.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=eos_token_id,
            pad_token_id=eos_token_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
        top = torch.cat(output.logits).float().topk(2).values
        return output.sequences[0].tolist(), (top[:, 0] - top[:, 1]).min().item()
