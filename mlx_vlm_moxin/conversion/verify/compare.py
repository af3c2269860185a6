"""Runs source and result on the same pictures and text, and measures how far they differ.

The source answers a few questions greedily. Both models then run over this answer with each
token forced (teacher forcing), so that each position compares two distributions of the same
next token. The models are never in memory together: the source's results are kept on disk.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from mlx_vlm_moxin.conversion.verify.actions import compare_actions
from mlx_vlm_moxin.conversion.verify.divergence import Divergence, compare, concatenate
from mlx_vlm_moxin.conversion.verify.report import Footprint, Verification
from mlx_vlm_moxin.conversion.verify.samples import find_samples
from mlx_vlm_moxin.conversion.verify.teacher_forcing import TeacherForcing, loaded

ANSWER_TOKENS = 48
# Below this share of equal most likely tokens, the result is considered broken.
AGREEMENT_FLOOR = 0.5
# Settings that change the arithmetic without changing any tensor's shape.
_ARITHMETIC = ("rms_norm_eps", "rope_theta", "rope_traditional", "sliding_window")


def _footprint(directory: Path, forcing: TeacherForcing) -> Footprint:
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    return Footprint(size, forcing.bits_per_weight)


def _text_settings(config: Any) -> dict[str, Any]:
    return {name: getattr(config.text_config, name, None) for name in _ARITHMETIC}


def _bits(directory: Path) -> list[int]:
    """Every number of bits in the ``quantization`` of a directory's config.json."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    quantization = config.get("quantization") or {}
    layers = [value for value in quantization.values() if isinstance(value, dict)]
    return sorted({part["bits"] for part in (quantization, *layers) if "bits" in part})


class Reference:
    """A source's answers and log-probabilities, for comparison with any number of results.

    Made by ``reference``.
    """

    def __init__(self, source: Path, images: Path | None, quiet: bool, directory: Path):
        self._samples = find_samples(images)
        self._own_pictures = images is not None
        self._quiet = quiet
        self._directory = directory
        self._ask(source)

    def _file(self, index: int) -> Path:
        return self._directory / f"{index}.npy"

    @property
    def _pictures(self) -> list[Path]:
        return list(dict.fromkeys(sample.picture for sample in self._samples))

    def _progress(self, description: str) -> tqdm:
        return tqdm(self._samples, desc=description, unit="answer", disable=self._quiet)

    def _ask(self, source: Path) -> None:
        self._answers, self._input_ids = [], []
        with loaded(source) as forcing:
            self._footprint = _footprint(source, forcing)
            self._settings = _text_settings(forcing.config)
            for index, sample in enumerate(self._progress("Source answers")):
                inputs = forcing.inputs(sample)
                answer = forcing.greedy_answer(inputs, ANSWER_TOKENS)
                log_probs = forcing.log_probs(inputs, answer)
                if not np.isfinite(log_probs).all():
                    raise ValueError(
                        f"The source's logits are not finite on {sample.picture.name}: "
                        f"{source} is damaged, so there is nothing to compare with"
                    )
                np.save(self._file(index), log_probs)
                self._answers.append(answer)
                self._input_ids.append(inputs["input_ids"])
            self._actions = forcing.actions(self._pictures)

    def compare(self, result: Path) -> Verification:
        """Load ``result``, run it on the source's answers and report.

        Raises:
            FileNotFoundError, ValueError: if mlx-vlm cannot load ``result``, or its vocabulary
                differs from the source's.
        """
        result = Path(result)
        divergences, same_inputs = [], True
        with loaded(result) as forcing:
            footprint = _footprint(result, forcing)
            settings = _text_settings(forcing.config)
            for index, sample in enumerate(self._progress("Result answers")):
                inputs = forcing.inputs(sample)
                # Placeholder ids are a hash of the pixels, so ids reveal a change of tokenizer
                # or pixels.
                same_inputs &= mx.array_equal(inputs["input_ids"], self._input_ids[index]).item()
                log_probs = forcing.log_probs(inputs, self._answers[index])
                source_log_probs = np.load(self._file(index))
                divergences.append(compare(source_log_probs, log_probs, self._answers[index]))
            actions = compare_actions(self._actions, forcing.actions(self._pictures))
        changed = [name for name in settings if settings[name] != self._settings[name]]
        return Verification(
            source=self._footprint,
            result=footprint,
            samples=self._samples,
            divergences=divergences,
            warning=_warning(concatenate(divergences), same_inputs, changed, _bits(result)),
            own_pictures=self._own_pictures,
            actions=actions,
        )


@contextmanager
def reference(source: Path, images: Path | None = None, quiet: bool = False) -> Iterator[Reference]:
    """Let a source answer once, for ``Reference.compare`` within the context.

    Its log-probabilities are kept in a temporary directory: 4 bytes per position and vocabulary
    entry, about 6 MB per answer. Arguments and errors are those of ``verify``.
    """
    with tempfile.TemporaryDirectory(prefix="moxin-verify-") as directory:
        yield Reference(Path(source), images, quiet, Path(directory))


def _warning(
    total: Divergence, same_inputs: bool, changed: list[str], bits: list[int]
) -> str | None:
    """One line with the likely cause if the result looks broken, else None."""
    if total.top1_agreement >= AGREEMENT_FLOOR:
        return None
    if not total.is_finite.all():
        cause = (
            "its logits are not finite; float16 overflows on this model (use --dtype bfloat16), "
            "or its weights are damaged"
        )
    elif not same_inputs:
        cause = (
            "its tokenizer or picture processor is not the source's; copy tokenizer*.json and "
            "preprocessor_config.json again"
        )
    elif changed:
        cause = f"its config.json differs from the source's in text_config.{changed[0]}"
    elif bits and bits[0] < 4:
        cause = (
            f"{bits[0]} bits are too few for these weights; use more bits, a smaller group size "
            "or a mixed recipe"
        )
    elif bits:
        cause = (
            f"{bits[0]} bits alone should keep far more, so its weights were probably damaged or "
            "mixed up; convert again from a fresh copy of the source"
        )
    else:
        cause = (
            "it is not quantised, so its weights were probably damaged or mixed up; convert "
            "again from a fresh copy of the source"
        )
    agreement = f"{total.top1_agreement:.1%}"
    return f"the result looks broken (top-1 agreement {agreement}): {cause}"


def verify(
    source: Path, result: Path, images: Path | None = None, quiet: bool = False
) -> Verification:
    """Compare a converted model with its source.

    Args:
        source, result: directories that ``mlx_vlm.load`` can load; loaded one after the
            other.
        images: directory of pictures to use instead of the bundled ones.
        quiet: no progress bars.

    Returns:
        The comparison, whose ``warning`` is set if the result looks broken.

    Raises:
        FileNotFoundError: if a directory is missing.
        ValueError: if a model cannot be loaded, a picture cannot be read, or the source
            itself yields logits that are not finite.
    """
    with reference(source, images, quiet) as asked:
        return asked.compare(result)
