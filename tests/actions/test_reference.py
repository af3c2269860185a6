"""Ids, hidden states and actions against those of the published PyTorch code."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from action_checks import ACTION_IDS, check_chunk, check_hidden_states, check_token_action
from action_models import HIDDEN_TOLERANCE, ID_MARGIN, LOGITS_TOLERANCE, arrays, goldens, picture

from mlx_vlm_moxin import predict_action
from mlx_vlm_moxin.actions.prompt import action_prompt, prompt_ids
from mlx_vlm_moxin.actions.statistics import EPSILON, scale_of

PARALLEL = [(name, case) for name in ("oft", "moxin") for case in goldens(name)["cases"]]


def _case_id(value) -> str:
    return value if isinstance(value, str) else value["key"]


def test_prompts_have_the_ids_that_openvla_gives_them(action_model):
    model, processor = action_model("openvla")
    known = goldens("openvla")
    for instruction, prompt, ids in zip(
        known["instructions"], known["prompts"], known["input_ids"]
    ):
        assert action_prompt(instruction) == prompt
        if instruction.isascii():
            assert [1, *prompt_ids(processor.tokenizer, model.config, instruction)] == ids


def test_native_runs_drop_the_image_marker(action_model):
    model, processor = action_model("openvla")
    config = replace(model.config)
    with_marker = prompt_ids(processor.tokenizer, config, "close the <image> door")
    config.action_config = replace(config.action_config, drop_image_marker=True)
    dropped = prompt_ids(processor.tokenizer, config, "close the <image> door")
    assert dropped == prompt_ids(processor.tokenizer, config, "close the  door") != with_marker


def test_the_token_at_the_prompts_end_is_appended_once(action_model):
    model, processor = action_model("openvla")
    config = replace(model.config)

    def ids(append_token_id):
        config.action_config = replace(config.action_config, append_token_id=append_token_id)
        return prompt_ids(processor.tokenizer, config, "close the door")

    text = ids(None)
    assert ids(29871) == [*text, 29871]
    assert ids(text[-1]) == text


@pytest.mark.parametrize("name", ["openvla", "oft", "moxin"])
def test_pixels_and_visual_tokens_equal_the_published_codes(action_model, name):
    model, processor = action_model(name)
    known = arrays(name)
    for key in (key for key in known if key.startswith("pixels/")):
        image = key.partition("/")[2]
        pixels = processor.image_processor([picture(image)])
        np.testing.assert_allclose(pixels[0], known[key], atol=1e-6)
        if f"projector/{image}" in known:
            tokens = model.encode_image(mx.array(pixels))[0]
            np.testing.assert_allclose(tokens, known[f"projector/{image}"], atol=1e-5)


def test_logits_of_an_openvla_action_equal_the_published_codes(action_model):
    model, processor = action_model("openvla")
    known = goldens("openvla")
    checked = 0
    for case in known["cases"]:
        key = f"logits_action/{case['image']}/{case['instruction']}"
        if key not in arrays("openvla"):
            continue
        text = known["instructions"][case["instruction"]]
        prompt = prompt_ids(processor.tokenizer, model.config, text)
        picture_ids = [model.config.image_token_index] * model.config.vision_config.num_patches
        ids = mx.array([[1, *picture_ids, *prompt, *case["ids"][:-1]]])
        pixels = mx.array(processor.image_processor([picture(case["image"])]))
        logits = np.array(model(ids, pixels).logits)[0, -7:, ACTION_IDS]
        np.testing.assert_allclose(logits, arrays("openvla")[key], atol=LOGITS_TOLERANCE["openvla"])
        checked += 1
    assert checked


@pytest.mark.parametrize(
    "case",
    goldens("openvla")["cases"],
    ids=lambda case: f"{case['image']}-{case['instruction']}",
)
def test_openvla_actions_equal_the_published_codes(action_model, case):
    check_token_action(*action_model("openvla"), case)


@pytest.mark.parametrize(("name", "case"), PARALLEL, ids=_case_id)
def test_chunks_equal_the_published_codes(action_model, name, case):
    check_chunk(*action_model(name, len(case["images"])), name, case)


@pytest.mark.parametrize(("name", "case"), PARALLEL, ids=_case_id)
def test_hidden_states_of_chunks_equal_the_published_codes(action_model, name, case):
    check_hidden_states(*action_model(name, len(case["images"])), name, case)


@pytest.mark.parametrize("name", ["oft", "moxin"])
def test_states_are_normalized_and_projected_as_in_the_published_code(action_model, name):
    model, _ = action_model(name)
    known = goldens(name)
    scale = scale_of(model.config.norm_stats, known["unnorm_key"], "proprio", epsilon=EPSILON)
    normalized = scale.normalize(np.array(known["states"]))
    np.testing.assert_allclose(normalized, arrays(name)["proprio_normalized"], atol=1e-12)
    projected = model.proprio_projector(mx.array(normalized.astype(np.float32)))
    np.testing.assert_allclose(projected, arrays(name)["proprio_projected"], atol=1e-5)


def test_a_batch_of_openvla_actions_equals_one_after_another(action_model):
    model, processor = action_model("openvla")
    known = goldens("openvla")
    cases = [case for case in known["cases"] if case["min_margin"] >= ID_MARGIN["openvla"]]
    # Prompts of several lengths: rows are padded.
    texts = [known["instructions"][case["instruction"]] for case in cases]
    images = [picture(case["image"]) for case in cases]
    actions = predict_action(model, processor, images, texts, "bridge_orig")
    np.testing.assert_allclose(actions, [case["actions"]["bridge_orig"] for case in cases])


@pytest.mark.parametrize("name", ["oft", "moxin"])
@pytest.mark.parametrize("num_images", [1, 2])
def test_a_batch_of_chunks_equals_one_after_another(action_model, name, num_images):
    model, processor = action_model(name, num_images)
    known = goldens(name)
    cases = [
        case
        for case in known["cases"]
        if len(case["images"]) == num_images and case["head"] and case["state"] is not None
    ]
    actions = predict_action(
        model,
        processor,
        [[picture(image) for image in case["images"]] for case in cases],
        [known["instructions"][case["instruction"]] for case in cases],
        known["unnorm_key"],
        state=[known["states"][case["state"]] for case in cases],
    )
    expected = [arrays(name)[f"{case['key']}/actions"] for case in cases]
    np.testing.assert_allclose(actions, expected, atol=HIDDEN_TOLERANCE)
