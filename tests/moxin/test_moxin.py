"""The whole model: merging, feature caches, batches, quantisation, settings on its config."""

import copy

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_vlm import VisionFeatureCache, batch_generate, generate, load, stream_generate
from mlx_vlm.generate.ar import generate_step
from mlx_vlm.models.cache import make_prompt_cache
from mlx_vlm.models.moxin.language import ONE_PASS_TOKENS
from mlx_vlm.models.moxin.moxin import merge_image_features
from mlx_vlm.vision_cache import processed_image_key
from support import GOLDENS, IMAGE_NAMES, LOGITS_TOLERANCE, MESSAGES, PROMPTS, image_path


@given(data=st.data())
@settings(max_examples=50)
def test_features_replace_placeholders_in_order_and_nothing_else(data):
    patches, width = data.draw(st.integers(1, 5)), 3
    batch = data.draw(st.integers(1, 3))
    pictures = data.draw(st.integers(1, batch))
    before = [data.draw(st.integers(0, 4)) for _ in range(batch)]
    length = max(before) + patches + data.draw(st.integers(0, 3))
    is_image = np.zeros((batch, length), bool)
    for row in range(pictures):
        is_image[row, before[row] : before[row] + patches] = True
    embeds = np.arange(batch * length * width, dtype=np.float32).reshape(batch, length, width)
    features = -1 - np.arange(pictures * patches * width, dtype=np.float32)
    features = features.reshape(pictures, patches, width)
    expected = embeds.copy()
    expected[is_image] = features.reshape(-1, width)
    merged = merge_image_features(mx.array(embeds), mx.array(features), mx.array(is_image))
    np.testing.assert_array_equal(merged, expected)


def test_a_reserved_id_in_the_answer_stays_text(model, processor):
    inputs = processor(PROMPTS[0]["prompt"], [image_path("photo")])
    ids = mx.concatenate([inputs["input_ids"], mx.array([[575, 530]])], axis=1)
    whole = model.get_input_embeddings(ids, inputs["pixel_values"]).inputs_embeds
    prompt = model.get_input_embeddings(**inputs).inputs_embeds
    answer = model.get_input_embeddings(ids[:, -2:]).inputs_embeds
    assert mx.array_equal(whole, mx.concatenate([prompt, answer], axis=1))


def test_features_keep_the_dtype_of_the_embeddings():
    embeds, features = mx.zeros((1, 2, 4), mx.bfloat16), mx.ones((1, 1, 4), mx.float32)
    merged = merge_image_features(embeds, features, mx.array([[True, False]]))
    assert merged.dtype == mx.bfloat16


def test_everything_runs_in_the_dtype_of_the_checkpoint(bf16_model, processor):
    inputs = processor(PROMPTS[0]["prompt"], [image_path("photo")])
    assert inputs["pixel_values"].dtype == mx.float32
    assert bf16_model.encode_image(inputs["pixel_values"]).dtype == mx.bfloat16
    output = bf16_model(inputs["input_ids"], inputs["pixel_values"])
    assert output.logits.dtype == mx.bfloat16


def test_encode_image_gives_one_token_per_patch(model, processor):
    pixel_values = mx.array(processor.image_processor([image_path("photo"), image_path("tall")]))
    assert model.encode_image(pixel_values).shape == (2, 4, 128)


@pytest.fixture
def tower_calls(model, monkeypatch):
    """The number of times the towers ran, as a list that grows."""
    calls, tower = [], type(model.vision_tower)
    original = tower.__call__

    def counted(self, pixel_values):
        calls.append(pixel_values.shape[0])
        return original(self, pixel_values)

    monkeypatch.setattr(tower, "__call__", counted)
    return calls


def test_a_second_question_about_a_picture_skips_the_towers(model, processor, tower_calls):
    vision_cache, answers = VisionFeatureCache(), []
    for name in ("photo", "tall", "photo"):
        chunks = stream_generate(
            model,
            processor,
            PROMPTS[0]["prompt"],
            [image_path(name)],
            max_tokens=8,
            vision_cache=vision_cache,
        )
        answers.append([chunk.token for chunk in chunks][:8])
    assert len(tower_calls) == 2
    golden = GOLDENS["generate"]["hf"]
    assert answers == [golden[n][0]["tokens"][:8] for n in ("photo", "tall", "photo")]


def test_the_servers_feature_cache_skips_the_towers(model, processor, tower_calls):
    vision_cache = VisionFeatureCache()
    inputs = processor(PROMPTS[0]["prompt"], [image_path("photo")])
    key = processed_image_key(inputs["pixel_values"])
    embeddings = [
        model.get_input_embeddings(
            inputs["input_ids"], inputs["pixel_values"], vision_cache=vision_cache, _image_key=key
        ).inputs_embeds
        for _ in range(2)
    ]
    assert len(tower_calls) == 1
    assert mx.array_equal(*embeddings)


def test_a_padded_batch_gives_the_logits_of_its_rows(model, processor):
    names = IMAGE_NAMES[:3]
    inputs = processor([p["prompt"] for p in PROMPTS], [image_path(name) for name in names])
    output = model(inputs["input_ids"], inputs["pixel_values"], mask=inputs["attention_mask"])
    for row, name in enumerate(names):
        alone = processor(PROMPTS[row]["prompt"], [image_path(name)])
        expected = model(alone["input_ids"], alone["pixel_values"]).logits[0]
        length = expected.shape[0]
        np.testing.assert_allclose(
            output.logits[row, -length:], expected, rtol=0, atol=LOGITS_TOLERANCE
        )


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_batch_generate_gives_each_row_its_own_answer(model, processor, rows):
    names = IMAGE_NAMES[:rows]
    messages = [MESSAGES[row % len(MESSAGES)] for row in range(rows)]
    response = batch_generate(
        model,
        processor,
        images=[image_path(name) for name in names],
        prompts=messages,
        max_tokens=GOLDENS["new_tokens"],
        # Pictures of different sizes would be in separate batches.
        group_by_shape=False,
    )
    for row, name in enumerate(names):
        golden = GOLDENS["generate"]["hf"][name][row % len(MESSAGES)]
        assert response.texts[row].strip() == golden["text"]


@pytest.fixture
def pass_lengths(model, monkeypatch) -> list[int]:
    """Number of tokens in each pass through the decoder, as a list that grows."""
    lengths, decoder = [], type(model.language_model)
    call = decoder.__call__

    def spy(self, inputs, **kwargs):
        lengths.append(inputs.shape[1])
        return call(self, inputs, **kwargs)

    monkeypatch.setattr(decoder, "__call__", spy)
    return lengths


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 64])
def test_a_prompt_of_one_pass_is_the_same_for_every_step(model, processor, pass_lengths, step):
    result = generate(
        model,
        processor,
        PROMPTS[1]["prompt"],
        [image_path("tall")],
        max_tokens=8,
        prefill_step_size=step,
    )
    assert result.token_ids == GOLDENS["generate"]["hf"]["tall"][1]["tokens"][:8]
    assert pass_lengths[0] == result.prompt_tokens


def test_short_prompts_of_a_batch_need_one_pass(model, processor, pass_lengths):
    names, prompts = IMAGE_NAMES[:2], [entry["prompt"] for entry in PROMPTS[:2]]
    images = [image_path(name) for name in names]
    lengths = [
        processor(prompt, [image])["input_ids"].shape[1] for prompt, image in zip(prompts, images)
    ]
    batch_generate(model, processor, images, prompts=prompts, max_tokens=2, group_by_shape=False)
    assert pass_lengths[0] == max(lengths)


def test_a_prompt_computed_in_steps_has_the_answer_of_one_pass(model, processor, pass_lengths):
    prompt = "In: " + "Is there a dog on the left? " * 40 + "\nOut:"
    inputs = processor(prompt, [image_path("tall")])
    length = inputs["input_ids"].shape[1]
    assert length > ONE_PASS_TOKENS
    expected = []
    for _ in range(4):
        tokens = mx.array([expected], dtype=mx.int32)
        ids = (
            mx.concatenate([inputs["input_ids"], tokens], axis=1)
            if expected
            else inputs["input_ids"]
        )
        expected.append(mx.argmax(model(ids, inputs["pixel_values"]).logits[0, -1]).item())
    for step in (37, 64, 300, length - 1, 2048):
        pass_lengths.clear()
        result = generate(
            model, processor, prompt, [image_path("tall")], max_tokens=4, prefill_step_size=step
        )
        assert result.token_ids == expected, step
        steps = [min(step, length - 1 - start) for start in range(0, length - 1, step)]
        assert pass_lengths[: len(steps) + 1] == [*steps, 1], step


def test_ids_above_the_padding_token_are_answers_like_any_other(model, processor):
    golden = GOLDENS["generate"]["hf"]
    reserved = [t for runs in golden.values() for run in runs for t in run["tokens"] if t > 512]
    assert reserved
    name = next(n for n, runs in golden.items() if any(t > 512 for t in runs[0]["tokens"]))
    prompt = PROMPTS[0]["prompt"]
    result = generate(model, processor, prompt, [image_path(name)], max_tokens=24)
    assert any(token > 512 for token in result.token_ids)
    assert result.text == golden[name][0]["text"]


def test_only_the_decoders_linear_layers_and_the_head_are_quantised(bf16_model):
    names = {
        name: bf16_model.quant_predicate(name, module)
        for name, module in bf16_model.named_modules()
        if hasattr(module, "to_quantized")
    }
    quantised = {name for name, chosen in names.items() if chosen}
    layers = bf16_model.config.text_config.num_hidden_layers
    projections = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert len(quantised) == layers * len(projections) + 1
    assert "language_model.lm_head" in quantised
    assert "language_model.model.embed_tokens" in names.keys() - quantised


def test_settings_that_mlx_vlm_puts_on_the_config_stay_there(fp32_checkpoint):
    model, _ = load(str(fp32_checkpoint))
    assert model.config.model_path == str(fp32_checkpoint)
    assert model.config.eos_token_id == 2
    assert isinstance(model.vision_tower, nn.Module)


@pytest.mark.parametrize(("length", "passes"), [(40, 1), (512, 1), (513, 2)])
def test_a_short_prompt_needs_one_pass_to_the_first_token(model, pass_lengths, length, passes):
    ids = mx.full((1, length), 5)
    next(generate_step(ids, model, None, None, temperature=0.0, max_tokens=1))
    assert pass_lengths[:passes] == ([length] if passes == 1 else [length - 1, 1])


def test_what_mlx_vlms_model_tests_read_is_there(bf16_model):
    assert bf16_model.vision_tower.model_type == bf16_model.config.vision_config.model_type
    assert bf16_model.language_model.model_type == bf16_model.config.text_config.model_type
    cache = make_prompt_cache(bf16_model.language_model)
    assert len(cache) == len(bf16_model.layers) == bf16_model.config.text_config.num_hidden_layers


def test_quantising_gives_the_model_itself_and_what_is_not_there_is_refused(bf16_model):
    model = copy.deepcopy(bf16_model)
    assert model.quantize(32, 4) is model
    with pytest.raises(ValueError, match="No layer can be quantised with group size 32"):
        model.quantize(32, 4)
