"""One conversion: open the source, plan the output, write it next to the target, rename it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlx_vlm_moxin.checkpoints.card import Card
from mlx_vlm_moxin.checkpoints.messages import format_size
from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.checkpoints.safetensors_writer import write_weights
from mlx_vlm_moxin.checkpoints.settings_files import check_output, write_settings
from mlx_vlm_moxin.checkpoints.skeleton import Skeleton, build_skeleton
from mlx_vlm_moxin.checkpoints.sources import Source
from mlx_vlm_moxin.checkpoints.sources.files import local_path
from mlx_vlm_moxin.checkpoints.staging import staged
from mlx_vlm_moxin.checkpoints.tensor_values import compute_tensors
from mlx_vlm_moxin.conversion.awq import apply_awq
from mlx_vlm_moxin.conversion.source_files import SourceFiles

# Space for everything but the weights.
_MARGIN_BYTES = 16 << 20


@dataclass(frozen=True)
class Conversion:
    """A finished conversion.

    Attributes:
        directory: the converted model.
        source: what it was made from.
        quantization: config.json's; None if nothing is quantised.
        bits_per_weight: stored bits per parameter, scales and biases included.
        card: the model card that was written.
    """

    directory: Path
    source: Source
    quantization: dict[str, Any] | None
    bits_per_weight: float
    card: Card


def _card_notes(source: Source, skeleton: Skeleton, options: QuantizeOptions) -> Iterator[str]:
    """Notes on how the weights were made that the result's settings do not show."""
    if options.quant_method == "awq":
        yield f"Weights were scaled by mlx-vlm's AWQ on its {options.calibration} samples first."
    if not source.quantization:
        return
    bits = source.quantization["bits"]
    if skeleton.requantizes(source):
        yield (
            f"The source was quantised to {bits} bits; its weights were unpacked and quantised "
            "again, so the errors of both steps add up."
        )
    elif skeleton.quantization is None:
        yield f"The source was quantised to {bits} bits; its weights were unpacked."


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(
            f"The conversion needs {format_size(needed)}, but {directory.parent} has "
            f"{format_size(free)} left; free some space or choose another --mlx-path"
        )


def _check_apart(target: Path, files: SourceFiles) -> None:
    """Refuse a target that is or contains the source: replacing it would delete the source."""
    for name in files.paths:
        if local_path(name).resolve().is_relative_to(target.resolve()):
            raise ValueError(f"{target} holds the source {name}; choose another --mlx-path")


def _write(directory: Path, source: Source, skeleton: Skeleton, quiet: bool) -> None:
    _check_space(directory, skeleton.nbytes + _MARGIN_BYTES)
    with tqdm(
        total=skeleton.nbytes, desc="Converting", unit="B", unit_scale=True, disable=quiet
    ) as bar:
        write_weights(directory, skeleton.tensors, compute_tensors(source, skeleton, bar.update))
    write_settings(
        directory, source.config, skeleton.quantization, source.processor, source.generation_config
    )


def convert(
    files: SourceFiles,
    mlx_path: str | Path,
    options: QuantizeOptions,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    upload_repo: str | None = None,
) -> Conversion:
    """Convert a source into the directory ``mlx_path``, tensor by tensor.

    Args:
        files: the source and the options that describe it.
            mlx_path: directory to write.
            options: dtype and quantisation of the result.
        overwrite: replace a model at ``mlx_path``; the old one is kept until the new one is
            complete.
        quiet: no progress bars.
        upload_repo: named on the model card; nothing is uploaded here.

    Raises:
        OSError, ValueError: one line that says what is wrong; ``mlx_path`` is unchanged.
    """
    options.check()
    files.check()
    target = local_path(str(mlx_path))
    _check_apart(target, files)
    with staged(target, overwrite) as directory:
        source = files.open()
        skeleton = build_skeleton(source, options)
        if skeleton.requantizes(source) and not quiet:
            print("The source is already quantised; the accuracy lost by that is not recovered.")
        if options.quant_method == "awq":
            if not quiet:
                print(f"AWQ loads the whole model into memory ({format_size(source.nbytes)}).")
            scaled = apply_awq(source, options, quiet)
            skeleton = build_skeleton(scaled, options)
        _write(directory, scaled if options.quant_method == "awq" else source, skeleton, quiet)
        card = Card(
            provenance=files.provenance(source),
            config=source.config,
            quantization=skeleton.quantization,
            notes=tuple(_card_notes(source, skeleton, options)),
        )
        card.write(directory, upload_repo)
        check_output(directory)
    return Conversion(target, source, skeleton.quantization, skeleton.bits_per_weight, card)
