"""Writes sharded safetensors one tensor at a time.

Shard sizes, file names and index are the same as those of ``mlx_vlm.utils.save_weights``, which
computes a whole shard of 5 GB before writing it.

Format: https://github.com/huggingface/safetensors#format
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import mlx.core as mx
from mlx_vlm.models.moxin.checkpoint import INDEX_FILE
from mlx_vlm.utils import make_shards

from mlx_vlm_moxin.checkpoints.tensors import FORMAT_NAMES

_ALIGNMENT = 8


def _header(tensors: dict[str, mx.array]) -> bytes:
    """Length prefix and JSON header of a file with these tensors, padded with spaces."""
    header: dict = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": FORMAT_NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write_shard(
    path: Path, tensors: dict[str, mx.array], values: Iterator[tuple[str, mx.array]]
) -> None:
    with open(path, "wb") as file:
        file.write(_header(tensors))
        for expected_name, expected in tensors.items():
            name, value = next(values)
            found = (name, value.shape, value.dtype)
            if found != (expected_name, expected.shape, expected.dtype):
                raise RuntimeError(
                    f"Tensor {found} was computed where {expected_name} with shape "
                    f"{expected.shape} and dtype {expected.dtype} was expected"
                )
            file.write(memoryview(mx.contiguous(value)))
            del value
        file.flush()
        os.fsync(file.fileno())


def write_weights(
    directory: Path, tensors: dict[str, mx.array], values: Iterable[tuple[str, mx.array]]
) -> None:
    """Write ``model*.safetensors`` and their index.

    Args:
        directory: existing directory to write to.
        tensors: every tensor's name, shape and dtype; the arrays are never evaluated.
        values: every tensor's name and value, in the order of ``tensors``.

    Raises:
        OSError: if the disk is full or fails.
    """
    shards = make_shards(tensors)
    name_format = "model-{:05d}-of-{:05d}.safetensors" if len(shards) > 1 else "model.safetensors"
    weight_map = {}
    remaining = iter(values)
    for number, shard in enumerate(shards, start=1):
        name = name_format.format(number, len(shards))
        _write_shard(directory / name, shard, remaining)
        weight_map.update(dict.fromkeys(shard, name))
    index = {
        "metadata": {"total_size": sum(value.nbytes for value in tensors.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=4), encoding="utf-8")
