"""Visual tokens of the requests that join a batch, computed together.

mlx-vlm computes them one request after the other and waits for each. It also hashes the pixels for
its cache of visual tokens, although the placeholders of a picture already are its hash.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_vlm.models.moxin.prepared_picture import PreparedPicture
from mlx_vlm.server.generation import QueuedGenerationRequest, ResponseGenerator

# Name under which the model receives visual tokens instead of pixels.
FEATURES = "cached_image_features"


class PictureFeatures(ResponseGenerator):
    """A generator that computes the pictures of all joining requests in one batch."""

    # Requests that join the batch next.
    _joining: Sequence[QueuedGenerationRequest] = ()

    def _gpu_embed(
        self,
        raw_inputs: dict[str, Any],
        images: list[PreparedPicture] | None = None,
        apc_semantic_hash: int | None = None,
    ) -> tuple[mx.array, dict[str, Any]]:
        """Token ids and embeddings of one request; called by mlx-vlm in the generation thread."""
        if images and FEATURES not in raw_inputs:
            joining = {id(raw_inputs): (raw_inputs, images[0])}
            for request in self._joining:
                if request.images:
                    joining[id(request.raw_inputs)] = (request.raw_inputs, request.images[0])
            self._add_features([*joining.values()])
        # Without images mlx-vlm does not look for visual tokens in its cache.
        ids, embeddings = super()._gpu_embed(raw_inputs, None, apc_semantic_hash)
        embeddings.pop(FEATURES, None)
        return ids, embeddings

    def _add_features(self, requests: Sequence[tuple[dict[str, Any], PreparedPicture]]) -> None:
        """Add visual tokens to the inputs of requests, from the cache or computed in a batch."""
        cache = self.vision_cache
        keys = [" ".join(map(str, picture.placeholders)) for _, picture in requests]
        features = {key: None if cache is None else cache.get(key) for key in keys}
        pixels = {
            key: inputs["pixel_values"]
            for key, (inputs, _) in zip(keys, requests)
            if features[key] is None
        }
        if pixels:
            computed = self.model.encode_image(mx.concatenate([*pixels.values()]))
            rows = mx.split(computed, len(pixels))
            # Not waited for: the GPU computes them while the prompts are prepared.
            mx.async_eval(rows)
            for key, row in zip(pixels, rows):
                features[key] = row
                if cache is not None:
                    cache.put(key, row)
        for key, (inputs, _) in zip(keys, requests):
            inputs[FEATURES] = features[key]
