"""The 8-bit export of OminiX-MLX (``moxin-org/Moxin-7B-VLM-8bit-mlx``).

Its weights have the names of the HF-converted checkpoint, with two differences: the towers'
attention is split into ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``, and a quantised
layer has ``X.inner.weight``, ``X.scales`` and ``X.biases`` (MLX's affine packing). The settings
of the packing are in quantize_config.json instead of config.json.

Writer: ``moxin-vlm-mlx/examples/save_quantized.rs`` of github OminiX-ai/OminiX-MLX.
"""

import re
from pathlib import Path

from mlx_vlm_moxin.checkpoints.sources.base import Source, Tensors
from mlx_vlm_moxin.checkpoints.sources.directory import read_json
from mlx_vlm_moxin.checkpoints.sources.saved import (
    config_dtype,
    model_source,
    packed_layers,
    read_config,
)
from mlx_vlm_moxin.checkpoints.tensors import LazyTensor, concatenate

QUANTIZE_CONFIG = "quantize_config.json"
_SPLIT = re.compile(r"(vision_backbone\..+\.attn\.)([qkv])_proj\.(\w+)")


def hf_name(name: str) -> tuple[str, int | None]:
    """Name in the HF-converted layout, and the place in ``qkv`` (None for a whole tensor)."""
    name = name.replace(".inner.", ".")
    split = _SPLIT.fullmatch(name)
    if split is not None:
        return f"{split[1]}qkv.{split[3]}", "qkv".index(split[2])
    if name.startswith("vision_backbone."):
        name = name.replace(".attn.out_proj.", ".attn.proj.")
    return name, None


def join_attention(tensors: Tensors) -> Tensors:
    """``tensors`` under the names of the HF-converted layout, with ``qkv`` joined.

    Rows of packed tensors are independent, so packed tensors are joined in the same way.

    Raises:
        ValueError: if one of q, k, v is missing or a name appears twice.
    """
    joined: Tensors = {}
    parts: dict[str, dict[int, LazyTensor]] = {}
    for name, tensor in tensors.items():
        ours, place = hf_name(name)
        known = joined if place is None else parts.setdefault(ours, {})
        key = ours if place is None else place
        if key in known:
            raise ValueError(f"The checkpoint has {ours} twice, the second time as {name}")
        known[key] = tensor
    for name, places in parts.items():
        if len(places) != 3 or name in joined:
            found = ", ".join("qkv"[place] for place in sorted(places))
            raise ValueError(f"The checkpoint has only {found} of the parts q, k and v of {name}")
        joined[name] = concatenate([places[place] for place in range(3)])
    return joined


def open_ominix(directory: Path, tensors: Tensors) -> Source:
    """Open an OminiX export; packed tensors are used without unpacking.

    Raises:
        ValueError: if tensors are packed, but quantize_config.json has no settings for them.
    """
    config = read_config(directory, tensors)
    tensors = join_attention(tensors)
    quantization = None
    if packed_layers(tensors):
        path = directory / QUANTIZE_CONFIG
        quantization = read_json(path).get("quantization")
        if not isinstance(quantization, dict):
            raise ValueError(f"{path} has no `quantization` with group_size and bits")
        quantization = {**quantization, "mode": "affine"}
    return model_source(
        directory,
        config,
        tensors,
        kind="an OminiX export",
        is_loadable=False,
        dtype=config_dtype(read_json(directory / "config.json")),
        quantization=quantization,
    )
