"""The reference checkpoint in every layout, and damaged copies of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from support import HF_CHECKPOINT, TINY

from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.checkpoints.skeleton import build_skeleton
from mlx_vlm_moxin.checkpoints.sources import Source, open_source
from mlx_vlm_moxin.checkpoints.tensor_values import compute_tensors
from mlx_vlm_moxin.conversion.convert import convert
from mlx_vlm_moxin.conversion.source_files import SourceFiles

NATIVE, HUB = TINY / "native", TINY / "hub"
NATIVE_FILES = SourceFiles(
    str(NATIVE),
    dino=str(HUB / "dino.safetensors"),
    siglip=str(HUB / "siglip.safetensors"),
    llm=str(HUB / "llm"),
)
# Arguments of the converter for both sources.
HF_ARGUMENTS = ["--model", str(HF_CHECKPOINT)]
NATIVE_ARGUMENTS = ["--model", str(NATIVE)]
for _option in ("dino", "siglip", "llm"):
    NATIVE_ARGUMENTS += [f"--{_option}", getattr(NATIVE_FILES, _option)]

FLOAT32 = QuantizeOptions(dtype="float32")

Weights = dict[str, mx.array]


def load_weights(directory: Path) -> Weights:
    """All tensors of a directory's safetensors files."""
    weights: Weights = {}
    for file in sorted(directory.glob("*.safetensors")):
        weights.update(mx.load(str(file)))
    return weights


def copy_checkpoint(source: Path, directory: Path, skip: tuple[str, ...] = ()) -> Path:
    """A writable copy."""
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns(*skip))
    for path in [directory, *directory.rglob("*")]:
        path.chmod(0o755)
    return directory


def with_weights(
    directory: Path, change: Callable[[Weights], Any], source: Path = HF_CHECKPOINT
) -> Path:
    """A copy of ``source`` in one file, after ``change`` of its tensors, in place."""
    copy_checkpoint(source, directory, skip=("model*",))
    weights = load_weights(source)
    change(weights)
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "pt"})
    return directory


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def break_tokenizer(directory: Path) -> None:
    """Add a prefix longer than any token, at which the tokenizers library panics."""
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["continuing_subword_prefix"] = "abc"
    path.write_text(json.dumps(content))


def write_ominix(directory: Path, bits: int | None = 8, group_size: int = 64) -> Path:
    """The reference checkpoint as OminiX-MLX's ``save_quantized`` would write it.

    With ``bits`` None the decoder is not quantised, which that program does not support.
    """

    def change(weights: Weights) -> None:
        for name in list(weights):
            if ".attn_pool." in name:
                del weights[name]
            elif name.startswith("vision_backbone.") and ".attn.qkv." in name:
                for part, rows in zip("qkv", mx.split(weights.pop(name), 3)):
                    weights[name.replace("qkv", f"{part}_proj")] = mx.contiguous(rows)
            elif name.startswith("vision_backbone.") and ".attn.proj." in name:
                weights[name.replace(".proj.", ".out_proj.")] = weights.pop(name)
            elif name.endswith(".scale_factor"):
                weights[name.replace("scale_factor", "gamma")] = weights.pop(name)
            elif name.endswith(("_proj.weight", "lm_head.weight")):
                weight = weights.pop(name)
                path = name.removesuffix(".weight")
                # Its intermediate size, unlike the real one, is no multiple of a group size.
                if bits is None or weight.shape[1] % group_size:
                    weights[f"{path}.weight"] = weight
                    continue
                packed = mx.quantize(weight, group_size, bits)
                parts = ("inner.weight", "scales", "biases")
                weights.update((f"{path}.{part}", value) for part, value in zip(parts, packed))

    with_weights(directory, change)
    settings = {"quantization": {"group_size": group_size, "bits": bits}}
    (directory / "quantize_config.json").write_text(json.dumps(settings))
    return directory


def converted(
    files: SourceFiles | Path, directory: Path, options: QuantizeOptions = FLOAT32, **kwargs: Any
) -> Path:
    """The directory of a finished conversion."""
    files = files if isinstance(files, SourceFiles) else SourceFiles(str(files))
    return convert(files, directory, options, quiet=True, **kwargs).directory


def refused(directory: Path, kind: type[Exception] = ValueError) -> str:
    """The one-line error for a directory that is refused as a source."""
    with pytest.raises(kind) as error:
        open_source(str(directory))
    assert "\n" not in str(error.value)
    return str(error.value)


def computed(source: Source, options: QuantizeOptions) -> dict[str, mx.array]:
    """The tensors of a conversion of ``source``."""
    return dict(compute_tensors(source, build_skeleton(source, options)))
