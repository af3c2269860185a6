"""Runs one loaded model: its greedy answer to a question, and the likelihood of a given answer."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_vlm import load
from mlx_vlm.generate import generate_step
from mlx_vlm.prompt_utils import apply_chat_template
from mlx_vlm.quant_utils import compute_bits_per_weight

from mlx_vlm_moxin.actions.policy import Prediction
from mlx_vlm_moxin.conversion.verify.actions import predict_actions
from mlx_vlm_moxin.conversion.verify.divergence import log_softmax
from mlx_vlm_moxin.conversion.verify.samples import Sample


class TeacherForcing:
    """A loaded model with the operations that a comparison needs."""

    def __init__(self, model: nn.Module, processor: Any):
        self._model = model
        self._processor = processor

    @property
    def config(self) -> Any:
        """The model's config."""
        return self._model.config

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per parameter, scales and biases of quantised layers included."""
        return compute_bits_per_weight(self._model)

    def actions(self, pictures: Sequence[Path]) -> list[Prediction]:
        """See ``actions.predict_actions``."""
        return predict_actions(self._model, self._processor, pictures)

    def inputs(self, sample: Sample) -> dict[str, mx.array]:
        """``input_ids`` ``[1, T]`` and ``pixel_values`` from the model's processor."""
        prompt = apply_chat_template(self._processor, self.config, sample.prompt, num_images=1)
        inputs = self._processor(text=[prompt], images=[str(sample.picture)])
        return {name: inputs[name] for name in ("input_ids", "pixel_values")}

    def greedy_answer(self, inputs: dict[str, mx.array], max_tokens: int) -> list[int]:
        """Token ids of the greedy continuation, including the end token if it is generated."""
        eos = self.config.eos_token_id
        end = set(eos) if isinstance(eos, list) else {eos}
        answer = []
        for token in self._generate(inputs, max_tokens, lambda logprobs: logprobs.argmax(axis=-1)):
            answer.append(token)
            if token in end:
                break
        return answer

    def log_probs(self, inputs: dict[str, mx.array], answer: list[int]) -> np.ndarray:
        """Log-probabilities ``[len(answer), V]`` float32 at the positions that predict ``answer``.

        Computed the way a user's answer is: by mlx-vlm's generation loop, token by token, with a
        key-value cache and the model's kernels. Only the choice of each token is replaced.
        """
        captured: list[mx.array] = []
        # The loop computes one more token than it yields.
        forced = iter([*answer, answer[-1]])

        def capture(tokens: mx.array, logits: mx.array) -> mx.array:
            captured.append(logits)
            return logits

        def sampler(logprobs: mx.array) -> mx.array:
            return mx.array([next(forced)])

        for _ in self._generate(inputs, len(answer), sampler, logits_processors=[capture]):
            pass
        return log_softmax(mx.concatenate(captured[: len(answer)]))

    def _generate(
        self,
        inputs: dict[str, mx.array],
        max_tokens: int,
        sampler: Callable[[mx.array], mx.array],
        **kwargs: Any,
    ) -> Iterator[int]:
        steps = generate_step(
            inputs["input_ids"],
            self._model,
            inputs["pixel_values"],
            None,
            max_tokens=max_tokens,
            sampler=sampler,
            **kwargs,
        )
        return (int(token) for token, _ in steps)


@contextmanager
def loaded(directory: Path) -> Iterator[TeacherForcing]:
    """Load the model of a directory for the duration of the context.

    Raises:
        FileNotFoundError: if the directory is missing (mlx-vlm would try to download it).
        ValueError: if mlx-vlm cannot load the directory.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"No model directory {directory}")
    forcing = TeacherForcing(*load(str(directory)))
    try:
        yield forcing
    finally:
        # The caller's variable keeps this object alive, but the weights must be freed now.
        forcing._model = forcing._processor = None
        gc.collect()
        mx.clear_cache()
