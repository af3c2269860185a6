"""mlx-vlm's generator for Moxin, in which requests do not affect each other.

Pictures are prepared before, counting tokens reads none, the context is a limit, ``stop`` ends an
answer, each request has its sampling settings, and a disconnected client's request ends.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from mlx_vlm.models.moxin.prepared_picture import PreparedPicture
from mlx_vlm.server.generation import (
    GenerationArguments,
    PromptTooLongError,
    ResponseGenerator,
    get_max_num_seqs,
)

from mlx_vlm_moxin.plugin.server import arrivals, context
from mlx_vlm_moxin.plugin.server.between_steps import WorkBetweenSteps
from mlx_vlm_moxin.plugin.server.client import ClientGoneError, current_client
from mlx_vlm_moxin.plugin.server.errors import BadRequestError, sentence
from mlx_vlm_moxin.plugin.server.picture_features import PictureFeatures
from mlx_vlm_moxin.plugin.server.pictures import PictureReader
from mlx_vlm_moxin.plugin.server.sampling import RowSampler
from mlx_vlm_moxin.plugin.server.stopping import StoppingTokens
from mlx_vlm_moxin.plugin.server.token_blocks import TokenBlocks, WholeAnswer

# Requests that join the batch in one step; the others wait until it has computed their prompts.
JOINING_AT_ONCE = 8


class UnusableInputError(BadRequestError, PromptTooLongError):
    """Unusable input, as the only type of error that the server expects from a generator."""


class MoxinResponseGenerator(PictureFeatures, WorkBetweenSteps):
    """A running ``ResponseGenerator`` whose model is Moxin, see ``adopt``."""

    # Sampler of the running batch; None with a drafter, and until the first batch starts.
    _row_sampler: RowSampler | None = None
    pictures: PictureReader

    def generate(
        self,
        prompt: str,
        images: list | None = None,
        audio: list | None = None,
        args: GenerationArguments | None = None,
        videos: list | None = None,
    ) -> tuple[Any, Any]:
        """Queue a request; its context and an iterator over its tokens.

        Raises:
            UnusableInputError: for audio, video, and a picture that cannot be used.
            PromptTooLongError: if the context has no room for an answer.
            ClientGoneError: if the client has disconnected.
        """
        client = current_client()
        prepared_for = client.generator if client is not None else self
        if prepared_for is not self and isinstance(prepared_for, MoxinResponseGenerator):
            # The server has changed its model meanwhile; this one remains until it is not needed.
            return prepared_for.generate(prompt, images, audio, args, videos)
        _refuse_audio(audio, videos)
        pictures = self._prepared(images, args)
        if args is not None:
            context.fit(self._count(prompt, images), args, self.config)
            args.client = client
        generated, tokens = super().generate(prompt, pictures, None, args)
        queue = tokens._rqueue
        if client is not None:
            tokens = client.attach(tokens)
        if getattr(args, "stop", None):
            tokens = StoppingTokens(tokens, args.stop, args.include_stop)
        if getattr(args, "is_streamed", False):
            tokens = TokenBlocks(tokens, queue, are_joined=not args.sends_logprobs)
        elif not getattr(args, "stop", None):  # a stop string is only found in tokens that are read
            tokens = WholeAnswer(tokens, queue)
        return generated, tokens

    def validate_context_budget(
        self,
        prompt: str,
        images: list | None = None,
        audio: list | None = None,
        args: GenerationArguments | None = None,
        videos: list | None = None,
    ) -> None:
        """Check a request before its stream opens, while an error can still be answered.

        Raises:
            UnusableInputError, PromptTooLongError: see ``generate``.
        """
        _refuse_audio(audio, videos)
        self._prepared(images, args)
        if args is not None:
            context.fit(self._count(prompt, images), args, self.config)

    def _prepared(
        self, images: list | None, args: GenerationArguments | None
    ) -> list[PreparedPicture] | None:
        """The pictures, read now if they were not read with the request.

        Raises:
            UnusableInputError: naming the picture that cannot be used, and why.
        """
        if not images:
            return None
        client = current_client()
        known = client.pictures if client is not None else {}
        shape = getattr(args, "resize_shape", None)
        try:
            return [
                image
                if isinstance(image, PreparedPicture)
                else known.get(image) or self.pictures.read_now(image, shape)
                for image in images
            ]
        except ValueError as error:
            raise UnusableInputError(sentence(error)) from error

    def _count(self, prompt: str, images: list | None) -> int:
        """Tokens of a prompt, for which no picture has to be read."""
        with self._tokenizer_lock:
            return self.processor.count_tokens(prompt, len(images or []))

    def _cpu_preprocess(
        self,
        prompt: str,
        images: list | None = None,
        audio: list | None = None,
        videos: list | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Called by mlx-vlm to count tokens: zeros in an array of the right size."""
        _refuse_audio(audio, videos)
        return {"input_ids": np.zeros((1, self._count(prompt, images)), np.int8)}

    def _preprocess_request(
        self,
        prompt: str,
        images: list | None = None,
        audio: list | None = None,
        videos: list | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Called by mlx-vlm for the model's inputs."""
        return super()._cpu_preprocess(prompt, images, audio, videos, **options)

    def _collect_pending_requests(
        self, *, capacity: int | None = None, **options: Any
    ) -> tuple[list, bool]:
        """The requests that join the batch, without those of disconnected clients.

        Called once for each step, so everything of the last one has been queued.
        """
        arrivals.announce()
        capacity = JOINING_AT_ONCE if capacity is None else min(capacity, JOINING_AT_ONCE)
        pending, should_stop = super()._collect_pending_requests(capacity=capacity, **options)
        waiting = []
        for request in pending:
            client = getattr(request.args, "client", None)
            if client is not None and client.is_gone:
                request.rqueue.put(ClientGoneError())
            else:
                waiting.append(request)
        self._joining = waiting
        return waiting, should_stop

    def _make_sampler(self, args: GenerationArguments) -> Callable | None:
        """The sampler of a new batch, whose first request has ``args``."""
        sampler = super()._make_sampler(args)
        self._row_sampler = None if self.draft_model is not None else RowSampler(sampler)
        return self._row_sampler or sampler

    def _log_prefill_started(self, request: Any, *, backend: str) -> dict[str, Any]:
        """What mlx-vlm keeps of a running request, with its arguments."""
        return {**super()._log_prefill_started(request, backend=backend), "args": request.args}

    def _step(self, batch_gen: Any, active: dict[int, dict[str, Any]], *args: Any) -> None:
        """One step of the running answers, sampled with the settings of each.

        mlx-vlm computes 32 at once, also where ``--max-num-seqs`` allows more.
        """
        size, limit = batch_gen.completion_batch_size, get_max_num_seqs()
        batch_gen.completion_batch_size = max(size, limit or 0)
        sampler = self._row_sampler
        if sampler is not None:
            for info in active.values():
                if "row" not in info:
                    info["row"] = sampler.row(info["args"])
            sampler.begin(batch_gen, {uid: info["row"] for uid, info in active.items()})
        super()._step(batch_gen, active, *args)


def _refuse_audio(audio: list | None, videos: list | None) -> None:
    """Raise ``UnusableInputError`` for audio and video, which the processor does not support."""
    if audio or videos:
        raise UnusableInputError("Moxin takes text and a picture, but no audio and no video")


def adopt(generator: ResponseGenerator) -> MoxinResponseGenerator:
    """Make a running generator a ``MoxinResponseGenerator``, in place. Idempotent.

    It is created before its model is known, so it cannot be created as one.
    """
    if not isinstance(generator, MoxinResponseGenerator):
        generator.pictures = PictureReader(generator.processor)
        if generator.vision_cache is not None and generator.vision_cache.max_size < 1:
            generator.vision_cache = None  # it would fail when it makes room for a picture
        generator.__class__ = MoxinResponseGenerator
        generator.adopt_work()
    return generator
