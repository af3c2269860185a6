"""The tabletop: its rules, its expert, and the data held out from training."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from moxin_tiny.scenes import HELD_OUT_COMBINATIONS, HELD_OUT_TINTS
from openvla_tiny.dataset import square_bytes
from openvla_tiny.drawing import draw
from openvla_tiny.environment import TableEnv
from openvla_tiny.expert import act, disturb
from openvla_tiny.layouts import make_table
from openvla_tiny.table import step
from openvla_tiny.tasks import KINDS, MAX_STEPS, WORDINGS, as_action, make_task


def play(environment: TableEnv, seed: int, policy=act) -> bool:
    """Whether ``policy`` fulfils the task of ``seed``."""
    environment.reset(seed=seed)
    for _ in range(MAX_STEPS):
        action = policy(environment.table, environment.task)
        _, reward, terminated, truncated, _ = environment.step(action)
        if terminated or truncated:
            return reward == 1
    raise AssertionError("An episode did not end")


def test_the_environment_keeps_gymnasiums_rules():
    check_env(TableEnv(kind="into"), skip_render_check=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_expert_always_succeeds(kind, split):
    environment = TableEnv(split, kind)
    assert all(play(environment, seed) for seed in range(20))


@pytest.mark.parametrize("kind", KINDS)
def test_no_episode_starts_with_its_task_done(kind):
    environment = TableEnv("test", kind)
    for seed in range(500):
        environment.reset(seed=seed)
        assert not environment.task.is_done(environment.table), seed


@pytest.mark.parametrize("kind", KINDS)
def test_doing_nothing_fails(kind):
    environment = TableEnv("test", kind)
    assert not any(play(environment, seed, lambda *_: as_action(0, 0, 0, 1)) for seed in range(5))


@pytest.mark.parametrize("kind", KINDS)
def test_the_expert_recovers_from_what_training_shows(kind):
    for index in range(20):
        table, rng = make_table("train", index)
        task = make_task(kind, table, "train", rng)
        table = disturb(table, task, rng)
        for _ in range(2 * MAX_STEPS):
            if task.is_done(table):
                break
            table = step(table, act(table, task))
        assert task.is_done(table), (index, task)


def test_a_seed_is_one_episode():
    first, second = TableEnv("test"), TableEnv("test")
    (a, info), (b, other) = first.reset(seed=3), second.reset(seed=3)
    assert np.array_equal(a, b)
    assert info == other
    assert not np.array_equal(a, second.reset(seed=4)[0])


def test_training_shows_nothing_that_is_held_out():
    for index in range(300):
        table, _ = make_table("train", index)
        assert table.tint not in HELD_OUT_TINTS
        assert not {(item.colour, item.shape) for item in table.items} & HELD_OUT_COMBINATIONS
        table, _ = make_table("test", index)
        assert table.tint in HELD_OUT_TINTS
        assert (table.items[0].colour, table.items[0].shape) in HELD_OUT_COMBINATIONS


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_wording_is_held_out_and_made_of_known_words(kind):
    table, rng = make_table("train", 0)
    said = {make_task(kind, table, "train", rng).instruction for _ in range(100)}
    last = make_task(kind, table, "test", random.Random(0), wording=len(WORDINGS[kind]) - 1)
    assert last.instruction not in said
    known = {word for texts in WORDINGS.values() for text in texts[:-1] for word in text.split()}
    assert {*WORDINGS[kind][-1].split()} <= known


def test_a_gripper_pushes_what_it_touches_and_nothing_else():
    table, rng = make_table("train", 1)
    task = make_task("right", table, "train", rng)
    before = table
    for _ in range(MAX_STEPS):
        table = step(table, act(table, task))
        if task.is_done(table):
            break
    assert table.items[0].x > before.items[0].x + 0.1
    assert table.items[0].y == before.items[0].y
    assert table.items[1:] == before.items[1:]


def test_what_is_held_moves_along_and_stays_where_it_is_released():
    table, rng = make_table("train", 2)
    task = make_task("into", table, "train", rng)
    while table.held is None:
        table = step(table, act(table, task))
    raised = step(table, as_action(0.05, 0.0, 0.5, 0))
    assert (raised.items[0].x, raised.items[0].y) == (raised.x, raised.y)
    released = step(raised, as_action(0, 0, 0, 1))
    assert released.held is None
    assert step(released, as_action(-0.08, 0, 0, 1)).items == released.items


def test_a_gripper_that_holds_an_item_shows_it():
    """Low over an item, closed is not the same as closed around it: the next action differs."""
    table, _ = make_table("train", 3)
    item = table.items[0]
    over = replace(table, x=item.x, y=item.y, z=0.0)
    states = [replace(over, is_open=True), replace(over, is_open=False)]
    states.append(replace(over, is_open=False, held=0))
    seen = [np.asarray(square_bytes(draw(state)), np.int32) for state in states]
    for a, b in itertools.combinations(seen, 2):
        assert (np.abs(a - b).max(axis=-1) > 60).sum() >= 12


@pytest.mark.parametrize("kind", KINDS)
def test_the_expert_lets_go_of_what_it_should_not_hold(kind):
    table, rng = make_table("train", 4)
    task = make_task(kind, table, "train", rng)
    table = replace(table.moved(1, table.x, table.y), held=1, is_open=False)
    table = step(table, act(table, task))
    assert table.held is None
    for _ in range(MAX_STEPS):
        table = step(table, act(table, task))
        if task.is_done(table):
            break
    assert task.is_done(table)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="Unknown kind of task 'fly'; known: move"):
        TableEnv(kind="fly")
    with pytest.raises(ValueError, match="Unknown split"):
        TableEnv("tests").reset(seed=0)
