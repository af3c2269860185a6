"""Moxin-tiny's training: flat weights, interrupted runs, the saved checkpoint."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten
from mlx_vlm import load
from mlx_vlm.models.moxin import Model
from moxin_tiny import CHECKPOINT
from moxin_tiny.architecture import model_config
from moxin_tiny.checkpoint import save_checkpoint
from moxin_tiny.dataset import Batch, make_batch, start_worker
from moxin_tiny.objective import Learner, answers_right
from moxin_tiny.texts import PAD, train_tokenizer
from moxin_tiny.train import FlatWeights, load_state, save_state


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture
def learner(tokenizer):
    mx.random.seed(0)
    return Learner(Model(model_config(tokenizer.token_to_id(PAD))))


@pytest.fixture
def batch(tokenizer):
    config = model_config(tokenizer.token_to_id(PAD))
    start_worker(tokenizer.to_str(), config.image_token_index, config.pad_token_id, frozenset())
    return make_batch("train", 0, 2, 4, 2)


@pytest.mark.slow
def test_the_tokenizer_is_the_shipped_one(tokenizer):
    shipped = (CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8")
    assert tokenizer.to_str(pretty=True) + "\n" == shipped


def test_flat_weights_come_apart_as_they_were(learner):
    weights = FlatWeights(learner)
    before = dict(tree_flatten(learner.trainable_parameters()))
    weights.load(weights.split(weights.vector))
    after = dict(tree_flatten(learner.trainable_parameters()))
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]) for name in before)


def test_a_row_asks_about_its_own_picture(batch, tokenizer):
    assert batch.pixels.shape[0] == 2
    assert batch.ids.shape[0] == 4
    for ids, is_answer in zip(batch.ids, batch.answers):
        text = tokenizer.decode(ids[is_answer].tolist())
        assert text
        assert "In:" not in text


def test_the_loss_of_every_part_has_a_gradient(learner, batch):
    def loss(parameters, batch):
        learner.update(parameters)
        return sum(learner.losses(batch))

    arrays = Batch(*(mx.array(part) for part in batch))
    gradients = tree_flatten(mx.grad(loss)(learner.trainable_parameters(), arrays))
    silent = {name for name, value in gradients if not mx.any(value != 0)}
    assert not silent


def test_an_interrupted_run_goes_on_with_its_weights_moments_and_log(learner, tmp_path):
    weights = FlatWeights(learner)
    optimizer = optim.AdamW(1e-3)
    optimizer.init({"all": weights.vector})
    gradient = {"all": mx.random.normal(weights.vector.shape)}
    weights.vector = optimizer.apply_gradients(gradient, {"all": weights.vector})["all"]
    log = {"seconds": 3, "curve": [[1, 0.5]]}
    save_state(tmp_path / "state.safetensors", weights, optimizer.state, log)
    fresh = FlatWeights(learner)
    state, read = load_state(tmp_path / "state.safetensors", fresh)
    assert read == log
    assert mx.array_equal(fresh.vector, weights.vector)
    expected = dict(tree_flatten(optimizer.state))
    assert all(mx.array_equal(value, expected[name]) for name, value in tree_flatten(state))


def test_the_saved_checkpoint_is_the_model_in_bfloat16(learner, batch, tokenizer, tmp_path):
    save_checkpoint(learner.model, tokenizer, tmp_path)
    model, _ = load(str(tmp_path))
    model.set_dtype(mx.float32)
    rounded = learner.model
    rounded.set_dtype(mx.bfloat16)
    rounded.set_dtype(mx.float32)
    assert answers_right(model, batch) == pytest.approx(answers_right(rounded, batch), rel=1e-4)
