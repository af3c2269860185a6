"""OpenVLA-tiny's training: its data, and that its forward pass equals the model's."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin import Model
from moxin_tiny.dataset import normalise
from moxin_tiny.dataset import square_bytes as processor_bytes
from moxin_tiny.scenes import COLOURS, SHAPES
from moxin_tiny.texts import PAD
from openvla_tiny.architecture import NUM_PATCHES, model_config
from openvla_tiny.dataset import Batch, Encoder, make_batch, square_bytes, start_worker
from openvla_tiny.drawing import draw
from openvla_tiny.layouts import make_table
from openvla_tiny.lesson import colour_index, patch_labels
from openvla_tiny.objective import ActionLearner, answer_logits, answers
from openvla_tiny.start import start_from_moxin_tiny
from openvla_tiny.tasks import WORDINGS
from openvla_tiny.texts import prompt, train_tokenizer
from openvla_tiny.train import RISE, rate_at


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(scope="module")
def config(tokenizer):
    return model_config(tokenizer.token_to_id(PAD))


@pytest.fixture(scope="module")
def encoder(tokenizer, config):
    return Encoder(tokenizer, config.image_token_index, config.pad_token_id)


@pytest.fixture(scope="module")
def learner(tokenizer, config, encoder):
    mx.random.seed(0)
    model = Model(config)
    start_from_moxin_tiny(model, tokenizer)
    return ActionLearner(model, encoder.start)


@pytest.fixture(scope="module")
def batch(tokenizer, config):
    start_worker(tokenizer.to_str(), config.image_token_index, config.pad_token_id)
    return Batch(*map(mx.array, make_batch(0, 2, 3)))


def test_a_row_is_the_prompt_of_openvla_after_the_common_start(tokenizer, encoder):
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    for text in (text for texts in WORDINGS.values() for text in texts):
        instruction = text.format(item=names[0], other=names[-1])
        ids, begin = encoder.row(instruction, np.zeros(7))
        whole = tokenizer.encode(prompt(instruction), add_special_tokens=False).ids
        assert encoder.start[1 + NUM_PATCHES :] + ids[: begin - 1] == whole


def test_training_sees_the_image_processors_pixels():
    picture = draw(make_table("train", 0)[0])
    assert np.array_equal(square_bytes(picture), processor_bytes(picture))


def test_every_thing_is_in_the_towers_lesson():
    table, _ = make_table("train", 0)
    labels = patch_labels(table)
    seen = {tuple(label) for label in labels[:, :2]} - {(0, 0)}
    named = {(1 + SHAPES.index(item.shape), 1 + colour_index(item.colour)) for item in table.items}
    assert seen == named | {(1 + len(SHAPES), 1 + len(COLOURS))}


def test_sharing_the_pictures_keys_changes_nothing(learner, batch, encoder):
    model = learner.model
    visual_tokens = mx.repeat(model.encode_image(normalise(batch.pixels)), 3, axis=0)
    start = mx.broadcast_to(mx.array(encoder.start), (len(batch.ids), len(encoder.start)))
    ids = mx.concatenate([start, batch.ids], axis=1)
    whole = model(ids, visual_tokens, cached_image_features=visual_tokens).logits
    places = len(encoder.start) + batch.starts[:, None] - 1 + mx.arange(8)
    expected = mx.take_along_axis(whole, places[..., None], axis=1)
    found = answer_logits(model, learner.features(batch), mx.array(encoder.start), batch)
    assert mx.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert mx.array_equal(answers(batch), mx.take_along_axis(ids, places + 1, axis=1))


def test_every_weight_that_acts_has_a_gradient(learner, batch):
    def loss(parameters):
        learner.update(parameters)
        return sum(learner.losses(batch))

    gradients = tree_flatten(mx.grad(loss)(learner.trainable_parameters()))
    assert not {name for name, value in gradients if not mx.any(value != 0)}


def test_the_learning_rate_rises_and_falls_to_nothing():
    assert rate_at(0, 1.0) == 0
    assert rate_at(RISE, 1.0) == 1
    assert rate_at(0.5, 1.0) < 1
    assert rate_at(1, 1.0) == pytest.approx(0)
