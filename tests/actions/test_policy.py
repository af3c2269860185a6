"""predict_action: its inputs, its results and its errors."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
from action_models import goldens, picture

from mlx_vlm_moxin import load, predict_action
from mlx_vlm_moxin.actions import policy
from mlx_vlm_moxin.actions.autoregressive import input_embeddings, predict_ids
from mlx_vlm_moxin.actions.inputs import prepare
from mlx_vlm_moxin.actions.policy import infer, predict
from mlx_vlm_moxin.actions.prompt import prompt_ids
from mlx_vlm_moxin.actions.statistics import choose_data_set

INSTRUCTION = "pick up the red cup"
STATE = goldens("oft")["states"][0]
KEY = "bridge_orig"


@pytest.fixture
def openvla(action_model):
    return action_model("openvla")


@pytest.fixture
def oft(action_model):
    return action_model("oft", 2)


@pytest.fixture
def two():
    return [picture("photo.policy224"), picture("tall.policy224")]


def test_an_action_is_float64_of_the_statistics_length(openvla):
    action = predict_action(*openvla, picture("photo"), INSTRUCTION, KEY)
    assert action.shape == (7,)
    assert action.dtype == np.float64


def test_a_chunk_is_actions_by_dimensions(oft, two):
    assert predict_action(*oft, two, INSTRUCTION, state=STATE).shape == (8, 7)


def test_pictures_are_accepted_in_any_form(openvla, tmp_path):
    image = picture("photo")
    path = tmp_path / "photo.png"
    image.save(path)
    expected = predict_action(*openvla, image, INSTRUCTION, KEY)
    for source in (
        str(path),
        path,
        np.asarray(image),
        path.read_bytes(),
        mx.array(np.array(image)),
    ):
        np.testing.assert_array_equal(predict_action(*openvla, source, INSTRUCTION, KEY), expected)


def test_center_crop_is_that_of_the_evaluation(openvla):
    expected = predict(*openvla, picture("photo.crop"), INSTRUCTION, KEY)
    cropped = predict(*openvla, picture("photo"), INSTRUCTION, KEY, center_crop=True)
    plain = predict(*openvla, picture("photo"), INSTRUCTION, KEY)
    np.testing.assert_array_equal(cropped.token_ids, expected.token_ids)
    assert (cropped.token_ids != plain.token_ids).any()


def test_pictures_of_another_size_are_resized_as_openvla_oft_does(oft, two):
    model, processor = oft
    assert model.config.action_config.policy_resize
    originals = [picture("photo"), picture("tall")]
    np.testing.assert_array_equal(
        predict_action(model, processor, originals, INSTRUCTION, state=STATE),
        predict_action(model, processor, two, INSTRUCTION, state=STATE),
    )


def _prefer(model, monkeypatch, token):
    """Make ``token`` the largest logit at every position."""
    original = model.language_model.lm_head

    def lm_head(h):
        return original(h) + 1e4 * (mx.arange(original.weight.shape[0]) == token)

    monkeypatch.setattr(model.language_model, "lm_head", lm_head)


def test_the_end_token_does_not_end_an_action(action_checkpoint, monkeypatch):
    model, processor = load(action_checkpoint("openvla"))
    _prefer(model, monkeypatch, model.config.eos_token_id)
    prediction = predict(model, processor, picture("photo"), INSTRUCTION, KEY)
    assert [*prediction.token_ids] == [2] * 7
    np.testing.assert_allclose(prediction.normalized, 254 / 255)


def test_nothing_waits_for_a_token_before_the_action_is_complete(openvla, monkeypatch):
    model, submitted, submit = openvla[0], [], mx.async_eval
    pixels = mx.array(openvla[1].image_processor(picture("photo")))
    prompts = [[5, 6, 7]]
    expected = predict_ids(model, prompts, pixels, 7)
    mx.eval(expected)
    for name in ("eval", "synchronize"):
        monkeypatch.setattr(mx, name, lambda *arguments: pytest.fail("waits"))
    monkeypatch.setattr(mx, "async_eval", lambda x: submitted.append(x.shape) or submit(x))
    ids = predict_ids(model, prompts, pixels, 7)
    # Each token but the last when it is recorded.
    assert submitted == 6 * [(1, 1)]
    assert ids.tolist() == expected.tolist()


@pytest.mark.parametrize("prompts", [[[5, 6, 7]], [[5, 6], [7, 8]], [[5], [6, 7, 8], []]])
def test_embeddings_are_those_of_the_ids_with_placeholders(openvla, prompts):
    model, processor = openvla
    config, length = model.config, max(map(len, prompts))
    pixels = mx.array(processor.image_processor(len(prompts) * [picture("photo")]))
    pixels = pixels * mx.arange(1, 1 + len(prompts))[:, None, None, None]  # another one for each
    padding = [length - len(prompt) for prompt in prompts]
    placeholders = config.vision_config.num_patches * [config.image_token_index]
    ids = [
        [config.pad_token_id] * pad + [config.bos_token_id, *placeholders, *prompt]
        for pad, prompt in zip(padding, prompts)
    ]
    expected = model.get_input_embeddings(mx.array(ids), pixels).inputs_embeds
    actual = input_embeddings(model, prompts, padding, pixels)
    assert mx.array_equal(actual, expected).item()


@pytest.mark.parametrize("name", ["openvla", "oft"])
def test_only_action_ids_can_be_chosen(action_checkpoint, monkeypatch, name):
    options = None if name == "openvla" else "libero"
    model, processor = load(action_checkpoint(name), actions=options)
    _prefer(model, monkeypatch, 5)
    images = picture("photo") if name == "openvla" else [picture("photo"), picture("tall")]
    arguments = {"unnorm_key": KEY} if name == "openvla" else {"state": STATE, "discrete": True}
    anything = predict(model, processor, images, INSTRUCTION, **arguments)
    actions = predict(model, processor, images, INSTRUCTION, action_ids_only=True, **arguments)
    assert (anything.token_ids == 5).all()
    assert ((actions.token_ids >= 31744) & (actions.token_ids < 32000)).all()


def test_a_statistics_file_next_to_the_checkpoint_has_priority(action_checkpoint, tmp_path):
    shutil.copytree(action_checkpoint("openvla"), tmp_path / "model")
    statistics = {"my_robot": {"action": {"q01": [0.0] * 3, "q99": [1.0] * 3}}}
    (tmp_path / "model" / "dataset_statistics.json").write_text(json.dumps(statistics))
    model, processor = load(tmp_path / "model")
    assert choose_data_set(model.config.norm_stats, None) == "my_robot"
    action = predict_action(model, processor, picture("photo"), INSTRUCTION)
    assert action.shape == (3,)
    assert ((action >= 0) & (action <= 1)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "bridge_orig, fractal20220817_data"),
        ({"unnorm_key": "nonsense"}, "bridge_orig, fractal20220817_data"),
        ({"unnorm_key": KEY, "state": [0.0]}, "does not read the robot's state"),
        ({"unnorm_key": KEY, "image": [picture("photo")] * 2}, "1 picture at a time, 2 given"),
        ({"unnorm_key": KEY, "image": "nowhere.png"}, "nowhere.png"),
        ({"unnorm_key": KEY, "instruction": []}, "not empty"),
        ({"unnorm_key": KEY, "instruction": None}, "must be a text"),
        ({"unnorm_key": KEY, "instruction": 5}, "must be a text"),
        ({"unnorm_key": KEY, "instruction": ["a", "b"]}, "1 pictures for 2 instructions"),
        ({"unnorm_key": KEY, "instruction": [b"a"]}, "a list of texts"),
        ({"unnorm_key": KEY, "instruction": "\ud800"}, "surrogates"),
        ({"unnorm_key": KEY, "instruction": "a " * 5_000_000}, "10000000 characters"),
        ({"unnorm_key": 5}, "unnorm_key 5 is none of .* bridge_orig, fractal20220817_data"),
        ({"unnorm_key": "k" * 100_000}, "bridge_orig, fractal20220817_data"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(openvla, arguments, message):
    arguments = {"image": picture("photo"), "instruction": INSTRUCTION, **arguments}
    if isinstance(arguments["instruction"], list):
        arguments["image"] = [arguments["image"]]
    with pytest.raises(ValueError, match=message) as error:
        predict_action(*openvla, **arguments)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 500


@pytest.mark.parametrize("image", [picture("photo"), "photo.png", b"photo", {"path": "a"}])
def test_a_batch_needs_a_list_of_pictures(openvla, image):
    with pytest.raises(ValueError, match="image must be a list of their pictures"):
        predict_action(*openvla, image, [INSTRUCTION], KEY)


def test_a_prompt_fits_the_models_context_or_is_refused(openvla, monkeypatch):
    model, processor = openvla
    prompt = len(prompt_ids(processor.tokenizer, model.config, INSTRUCTION))
    text_config, arguments = model.config.text_config, (picture("photo"), INSTRUCTION, KEY)
    # <s>, the picture, the prompt, the action, </s>.
    needed = 1 + model.config.vision_config.num_patches + prompt + 7 + 1
    monkeypatch.setattr(text_config, "max_position_embeddings", needed)
    predict_action(*openvla, *arguments)
    monkeypatch.setattr(text_config, "max_position_embeddings", needed - 1)
    message = f"{prompt} tokens; .* context of {needed - 1} tokens has room for {prompt - 1}"
    with pytest.raises(ValueError, match=message):
        predict_action(*openvla, *arguments)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "give state with 8 values"),
        ([0.0] * 7, r"shape \[8\], got \[7\]"),
        ([[0.0] * 8], r"shape \[8\], got \[1, 8\]"),
        ([float("nan")] * 8, "not finite"),
        ("straight up", "must be numbers"),
        ([10**400] * 8, "must be numbers"),
    ],
)
def test_states_that_do_not_fit_are_refused(oft, two, state, message):
    with pytest.raises(ValueError, match=message):
        predict_action(*oft, two, INSTRUCTION, state=state)


def test_a_model_without_actions_says_so(loaded):
    with pytest.raises(ValueError, match="gives no actions"):
        predict_action(*loaded, picture("photo"), INSTRUCTION)


def test_a_gpu_may_receive_the_pixels_together_with_the_model(openvla, monkeypatch):
    events, prepared = [], []

    def pixels(images, until):
        until.callback(events.append, "end of the pixels' memory")
        prepared.append(images)

    model, processor = openvla
    monkeypatch.setattr(processor.image_processor, "engine_pixels", pixels)
    monkeypatch.setattr(policy, "infer", lambda *_, **__: events.append("model"))
    predict(model, processor, picture("photo"), INSTRUCTION, KEY)
    assert len(prepared) == 1
    assert events == ["model", "end of the pixels' memory"]


def test_inputs_prepared_in_another_thread_give_the_same_action(action_model):
    model, processor = action_model("oft", 2)
    state = goldens("oft")["states"][0]
    pictures = [picture("photo.policy224"), picture("tall.policy224")]
    lock = threading.Lock()
    options = {"state": state, "tokenizer_lock": lock}
    with ThreadPoolExecutor(1) as pool:
        inputs = pool.submit(prepare, model, processor, pictures, "open it", **options).result()
    assert type(inputs.states) is np.ndarray
    assert not lock.locked()
    expected = predict(model, processor, pictures, "open it", state=state)
    np.testing.assert_array_equal(infer(model, inputs).action, expected.action)
