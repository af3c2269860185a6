"""A model's answers to questions about pictures, several at a time.

The prompts of a batch are padded on the left, and mlx-vlm's batch caches mask the padding:
batched and single answers differ only by the rounding of sums in another order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_vlm import apply_chat_template
from mlx_vlm.generate import BatchGenerator
from mlx_vlm.models.cache import BatchKVCache, make_prompt_cache
from mlx_vlm.models.moxin.prepared_picture import PictureInput, PreparedPicture
from PIL import Image

# Prismatic's ``llm_max_length``: longer prompts are truncated at the end.
MAX_PROMPT_TOKENS = 2048


@dataclass(frozen=True)
class Question:
    """A message about a picture.

    Attributes:
        prompt: the message, without the model's prompt format.
        image: the picture, preprocessed or in a form that the processor accepts.
        picture_id: equal for equal pictures, so that each is encoded once.
    """

    prompt: str
    image: PictureInput
    picture_id: str


@dataclass(frozen=True)
class _Prompts:
    """The decoder's inputs for a batch of ``B`` rows of up to ``T`` tokens.

    Attributes:
        ids, mask: ``[B, T]`` integers, padded on the left; the mask is 1 for tokens.
        embeddings: ``[B, T, hidden_size]`` in the model's dtype.
    """

    ids: mx.array
    mask: mx.array
    embeddings: mx.array


class Answering:
    """Answers questions with a loaded model.

    Args:
        model, processor: as ``load.load`` returns them.
    """

    def __init__(self, model: nn.Module, processor: Any):
        self._model, self._processor = model, processor
        # Visual tokens of the previous batch's pictures, which the next batch may ask about too.
        self._features: dict[str, mx.array] = {}

    def prepare(self, image: Image.Image) -> PreparedPicture:
        """Preprocess a picture for the model; several threads may call this at the same time."""
        return self._processor.prepare_picture(image)

    def token_ids(self, strings: Sequence[str]) -> list[int]:
        """The token id of each string.

        Raises:
            ValueError: if a string is not exactly one token.
        """
        encode = self._processor.tokenizer.encode
        ids = {text: encode(text, add_special_tokens=False) for text in strings}
        several = next((text for text in strings if len(ids[text]) != 1), None)
        if several is not None:
            raise ValueError(
                f"The probability of {several!r} is needed, which is {len(ids[several])} tokens "
                "for this model's tokenizer instead of one; leave such tasks out"
            )
        return [ids[text][0] for text in strings]

    def probabilities(
        self, questions: Sequence[Question], strings: Sequence[str]
    ) -> list[list[float]]:
        """The probability that each of ``strings`` begins the answer.

        Args:
            questions: a batch of ``B`` questions.
            strings: the ``N`` strings to compare, one token each.

        Returns:
            ``[B, N]`` float32; each row sums to 1.

        Raises:
            ValueError: if a string is not one token, or a picture cannot be used.
        """
        ids = self.token_ids(strings)
        prompts = self._prompts(questions)
        decoder = self._model.language_model
        if len(questions) == 1:
            cache = make_prompt_cache(decoder)
        else:
            padding = (prompts.ids.shape[1] - prompts.mask.sum(axis=1)).tolist()
            cache = [BatchKVCache(padding) for _ in decoder.layers]
        logits = decoder(
            prompts.ids, inputs_embeds=prompts.embeddings, cache=cache, logits_to_keep=1
        ).logits[:, -1]
        # The softmax over these logits equals the softmax over all, renormalised.
        return mx.softmax(logits[:, mx.array(ids)].astype(mx.float32), axis=-1).tolist()

    def texts(self, questions: Sequence[Question], max_tokens: int) -> list[str]:
        """Greedy answers, without special tokens and surrounding whitespace.

        Raises:
            ValueError: if a picture cannot be used.
        """
        prompts = self._prompts(questions)
        rows = len(questions)
        generator = BatchGenerator(
            self._model.language_model,
            self._processor,
            completion_batch_size=rows,
            prefill_batch_size=rows,
            # Prefill in one pass, since these prompts are short.
            prefill_step_size=None,
            compute_logprobs=False,
        )
        try:
            embeddings = [{"inputs_embeds": prompts.embeddings[row][None]} for row in range(rows)]
            uids = generator.insert(
                prompts.ids, max_tokens, prompt_kwargs=embeddings, attention_mask=prompts.mask
            )
            tokens: dict[int, list[int]] = {uid: [] for uid in uids}
            while generator.has_work:
                _, responses = generator.next()
                for response in responses:
                    if response.finish_reason != "stop":
                        tokens[response.uid].append(response.token)
        finally:
            generator.close()
        decode = self._processor.tokenizer.decode
        return [decode(tokens[uid], skip_special_tokens=True).strip() for uid in uids]

    def _prompts(self, questions: Sequence[Question]) -> _Prompts:
        texts = [
            apply_chat_template(self._processor, self._model.config, question.prompt, num_images=1)
            for question in questions
        ]
        inputs = self._processor(text=texts, images=[question.image for question in questions])
        ids, mask = self._truncated(inputs["input_ids"], inputs["attention_mask"])
        features = self._encoded(questions, inputs["pixel_values"])
        embeddings = self._model.get_input_embeddings(
            ids, inputs["pixel_values"], mask=mask, cached_image_features=features
        ).inputs_embeds
        return _Prompts(ids, mask, embeddings)

    def _truncated(self, ids: mx.array, mask: mx.array) -> tuple[mx.array, mx.array]:
        """Prompts truncated to ``MAX_PROMPT_TOKENS``, not counting the picture's tokens."""
        limit = self._processor.num_image_tokens + MAX_PROMPT_TOKENS
        if ids.shape[1] <= limit:
            return ids, mask
        rows = [
            [i for i, m in zip(*pair) if m][:limit] for pair in zip(ids.tolist(), mask.tolist())
        ]
        length = max(map(len, rows))
        padding = self._processor.tokenizer.pad_token_id
        ids = mx.array([[padding] * (length - len(row)) + row for row in rows])
        mask = mx.array([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        return ids, mask

    def _encoded(self, questions: Sequence[Question], pixel_values: mx.array) -> mx.array:
        """Visual tokens ``[B, N, hidden_size]`` of the questions; each picture is encoded once."""
        rows = {question.picture_id: row for row, question in enumerate(questions)}
        new = [name for name in rows if name not in self._features]
        known = {name: self._features[name] for name in rows if name in self._features}
        if new:
            encoded = self._model.encode_image(pixel_values[mx.array([rows[n] for n in new])])
            mx.eval(encoded)
            known |= {name: encoded[index] for index, name in enumerate(new)}
        self._features = known
        return mx.stack([known[question.picture_id] for question in questions])
