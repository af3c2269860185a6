"""Comparisons with the published code's outputs, also used by the mutation tests."""

from typing import Any

import mlx.core as mx
import numpy as np
from action_models import (
    HIDDEN_TOLERANCE,
    ID_MARGIN,
    LOGITS_TOLERANCE,
    arrays,
    goldens,
    picture,
)

from mlx_vlm_moxin.actions import parallel
from mlx_vlm_moxin.actions.policy import Prediction, predict
from mlx_vlm_moxin.actions.prompt import prompt_ids

ACTION_IDS = slice(31744, 32064)


def check_token_action(model: Any, processor: Any, case: dict[str, Any]) -> None:
    """An OpenVLA action under the statistics of every data set."""
    text = goldens("openvla")["instructions"][case["instruction"]]
    for key, action in case["actions"].items():
        prediction = predict(model, processor, picture(case["image"]), text, key)
        same = [*prediction.token_ids] == case["ids"]
        assert same or case["min_margin"] < ID_MARGIN["openvla"]
        if same:
            np.testing.assert_allclose(prediction.normalized, case["normalized"], atol=1e-12)
            np.testing.assert_allclose(prediction.action, action, atol=1e-12)


def predict_chunk(model: Any, processor: Any, name: str, case: dict[str, Any]) -> Prediction:
    known = goldens(name)
    images = [picture(image) for image in case["images"]]
    state = None if case["state"] is None else known["states"][case["state"]]
    return predict(
        model,
        processor,
        images if len(images) > 1 else images[0],
        known["instructions"][case["instruction"]],
        known["unnorm_key"],
        state=state,
        leave_state_out=state is None,
        discrete=not case["head"],
    )


def check_chunk(model: Any, processor: Any, name: str, case: dict[str, Any]) -> None:
    """A chunk of actions, from the head or from tokens."""
    prediction = predict_chunk(model, processor, name, case)
    known, tolerance = arrays(name), HIDDEN_TOLERANCE
    if case["head"]:
        assert prediction.token_ids is None
    else:
        same, tolerance = [*prediction.token_ids.ravel()] == case["ids"], 1e-12
        assert same or case["min_margin"] < ID_MARGIN[name]
        if not same:
            return
    for part, value in (("normalized", prediction.normalized), ("actions", prediction.action)):
        np.testing.assert_allclose(value, known[f"{case['key']}/{part}"], atol=tolerance)


def check_hidden_states(model: Any, processor: Any, name: str, case: dict[str, Any]) -> None:
    """The decoder's inputs and outputs in a parallel pass."""
    known, config = goldens(name), model.config.action_config
    text = known["instructions"][case["instruction"]]
    prompt = prompt_ids(processor.tokenizer, model.config, text)
    pixels = mx.array(processor.image_processor([picture(image) for image in case["images"]]))
    state, count = None, known["chunk"] * known["action_dim"]
    if case["state"] is not None:
        state = mx.array(arrays(name)["proprio_normalized"][[case["state"]]].astype(np.float32))
    x, lengths = parallel.input_embeddings(model, [prompt], pixels, state, count)
    h = parallel.action_hidden_states(model, [prompt], pixels, state, count, config.causal)
    found = {
        "inputs_embeds": x,
        "hidden": h,
        "hidden_all": parallel.decode(model.language_model, x, lengths, config.causal),
        "logits_action": model.language_model.lm_head(h)[..., ACTION_IDS],
    }
    tolerances = {"inputs_embeds": 1e-5, "logits_action": LOGITS_TOLERANCE[name]}
    assert lengths == [case["T"]]
    assert len(prompt) == case["N"]
    for part, value in found.items():
        expected = arrays(name).get(f"{case['key']}/{part}")
        if expected is not None:
            tolerance = tolerances.get(part, HIDDEN_TOLERANCE)
            np.testing.assert_allclose(value[0], expected, atol=tolerance, err_msg=part)
