"""The reference checks can fail: each mutation of the arithmetic is caught by one of them."""

from contextlib import contextmanager
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from action_checks import check_chunk, check_hidden_states, check_token_action
from action_models import goldens

from mlx_vlm_moxin import load
from mlx_vlm_moxin.actions import inputs, parallel, prompt
from mlx_vlm_moxin.actions.statistics import Scale
from mlx_vlm_moxin.actions.tokens import ActionTokenizer

# What the published code embeds and then sets to zero.
PLACEHOLDER_ID = 1
TOKEN_CASE = goldens("openvla")["cases"][0]


def _case(name: str, head: bool = True) -> dict:
    return next(case for case in goldens(name)["cases"] if case["head"] == head)


@pytest.fixture
def fresh(action_checkpoint):
    """By name: a private copy of a model and its processor, in float32."""

    def loaded(name: str):
        options = None if name == "openvla" else "libero"
        model, processor = load(action_checkpoint(name), actions=options)
        if options is not None:
            model.config.action_config = replace(model.config.action_config, num_images=1)
        model.set_dtype(mx.float32)
        return model, processor

    return loaded


@contextmanager
def is_caught(check, *arguments):
    check(*arguments)
    yield
    with pytest.raises(AssertionError):
        check(*arguments)


def test_a_mask_that_is_ignored_is_caught(fresh, monkeypatch):
    def unnormalize(scale, values):
        return original(replace(scale, mask=np.ones_like(scale.mask)), values)

    original = Scale.unnormalize
    with is_caught(check_token_action, *fresh("openvla"), TOKEN_CASE):
        monkeypatch.setattr(Scale, "unnormalize", unnormalize)


def test_keys_that_are_swapped_are_caught(fresh):
    model, processor = fresh("openvla")
    with is_caught(check_token_action, model, processor, TOKEN_CASE):
        first, second = model.config.norm_stats.values()
        model.config.norm_stats = dict(zip(model.config.norm_stats, (second, first)))


@pytest.mark.parametrize("step", [-1, 1])
def test_a_bin_that_is_one_off_is_caught(fresh, monkeypatch, step):
    original = ActionTokenizer.decode
    with is_caught(check_token_action, *fresh("openvla"), TOKEN_CASE):
        monkeypatch.setattr(ActionTokenizer, "decode", lambda self, ids: original(self, ids + step))


def test_a_prompt_without_its_last_token_is_caught(fresh):
    model, processor = fresh("openvla")
    with is_caught(check_token_action, model, processor, TOKEN_CASE):
        model.config.action_config.append_token_id = None


def test_an_instruction_in_upper_case_is_caught(fresh, monkeypatch):
    case = next(case for case in goldens("openvla")["cases"] if case["instruction"] == 1)
    with is_caught(check_token_action, *fresh("openvla"), case):
        monkeypatch.setattr(prompt, "question", prompt.QUESTION.format)


@pytest.mark.parametrize("name", ["oft", "moxin"])
@pytest.mark.parametrize("head", [True, False])
def test_attention_of_the_other_kind_is_caught(fresh, name, head):
    model, processor = fresh(name)
    with is_caught(check_hidden_states, model, processor, name, _case(name, head)):
        config = model.config.action_config
        model.config.action_config = replace(config, causal=not config.causal)


@pytest.mark.parametrize("name", ["oft", "moxin"])
@pytest.mark.parametrize("step", [-1, 1])
def test_a_slice_that_is_one_off_is_caught(fresh, monkeypatch, name, step):
    original = parallel.decode

    def decode(*arguments):
        return mx.roll(original(*arguments), step, axis=1)

    with is_caught(check_chunk, *fresh(name), name, _case(name)):
        monkeypatch.setattr(parallel, "decode", decode)


@pytest.mark.parametrize("name", ["oft", "moxin"])
def test_placeholders_that_are_not_zeroed_are_caught(fresh, monkeypatch, name):
    model, processor = fresh(name)

    def input_embeddings(model, prompts, pixels, state, count):
        x, lengths = original(model, prompts, pixels, state, count)
        embedding = model.language_model.model.embed_tokens(mx.array(PLACEHOLDER_ID))
        x[:, -1 - count : -1] = embedding
        return x, lengths

    original = parallel.input_embeddings
    with is_caught(check_hidden_states, model, processor, name, _case(name)):
        monkeypatch.setattr(parallel, "input_embeddings", input_embeddings)


def _without_stop_token(monkeypatch):
    original = parallel.input_embeddings

    def input_embeddings(*arguments):
        x, lengths = original(*arguments)
        x[:, -1] = 0
        return x, lengths

    monkeypatch.setattr(parallel, "input_embeddings", input_embeddings)


def test_a_stop_token_that_is_zeroed_is_caught_under_full_attention(fresh, monkeypatch):
    with is_caught(check_chunk, *fresh("oft"), "oft", _case("oft")):
        _without_stop_token(monkeypatch)


def test_the_stop_token_has_no_effect_under_causal_attention(fresh, monkeypatch):
    case = _case("moxin")
    model, processor = fresh("moxin")
    check_chunk(model, processor, "moxin", case)
    _without_stop_token(monkeypatch)
    check_chunk(model, processor, "moxin", case)


@pytest.mark.parametrize("name", ["oft", "moxin"])
def test_a_state_that_is_left_out_is_caught(fresh, monkeypatch, name):
    case = next(case for case in goldens(name)["cases"] if case["state"] is not None)
    with is_caught(check_chunk, *fresh(name), name, case):
        monkeypatch.setattr(inputs, "_states", lambda *arguments: None)


@pytest.mark.parametrize("name", ["oft", "moxin"])
def test_a_state_that_is_not_normalized_is_caught(fresh, monkeypatch, name):
    case = next(case for case in goldens(name)["cases"] if case["state"] is not None)
    with is_caught(check_chunk, *fresh(name), name, case):
        monkeypatch.setattr(Scale, "normalize", lambda self, values: values)
