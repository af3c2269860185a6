"""Work between the steps of answers: in order, once a step, and only if somebody waits for it."""

import asyncio
import threading
from collections import deque
from types import SimpleNamespace

import pytest
from mlx_vlm.server.generation import ResponseGenerator

from mlx_vlm_moxin.plugin.server import between_steps
from mlx_vlm_moxin.plugin.server.between_steps import StoppingError, WorkBetweenSteps


@pytest.fixture
def generator(monkeypatch):
    """A generator whose thread is the test, which calls ``step``."""
    monkeypatch.setattr(
        ResponseGenerator, "_collect_pending_requests", lambda self, **options: ([], False)
    )
    monkeypatch.setattr(between_steps, "WATCH_INTERVAL", 0.01)
    generator = WorkBetweenSteps.__new__(WorkBetweenSteps)
    generator.requests = SimpleNamespace(put=lambda item: None)
    generator._thread = threading.current_thread()
    generator.adopt_work()
    generator.step = lambda: generator._collect_pending_requests(active=False)
    return generator


async def stays() -> bool:
    return False


async def leaves() -> bool:
    return True


async def queued(generator, count: int) -> None:
    while len(generator._work) < count:
        await asyncio.sleep(0)


def test_one_piece_of_work_has_its_turn_at_each_step_in_the_order_of_arrival(generator):
    done = []

    async def run():
        waiting = [
            asyncio.create_task(generator.between_steps(lambda i=i: done.append(i) or i, stays))
            for i in range(3)
        ]
        await queued(generator, 3)
        for steps in range(1, 4):
            generator.step()
            assert done == [*range(steps)]
        return await asyncio.gather(*waiting)

    assert asyncio.run(run()) == [0, 1, 2]


def test_work_whose_client_has_left_is_dropped_and_the_next_one_has_its_turn(generator):
    done = []

    async def run():
        first = asyncio.create_task(generator.between_steps(lambda: done.append(1), leaves))
        await queued(generator, 1)
        assert await first is None
        second = asyncio.create_task(generator.between_steps(lambda: done.append(2), stays))
        await queued(generator, 2)
        generator.step()
        await second

    asyncio.run(run())
    assert done == [2]


def test_work_whose_request_is_cancelled_is_dropped(generator):
    async def run():
        waiting = asyncio.create_task(generator.between_steps(pytest.fail, stays))
        await queued(generator, 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        generator.step()

    asyncio.run(run())


@pytest.mark.parametrize("error", [ValueError("weights"), TimeoutError("its own")])
def test_an_error_of_the_work_is_raised_where_it_was_wanted(generator, error):
    def fail():
        raise error

    async def run():
        waiting = asyncio.create_task(generator.between_steps(fail, stays))
        await queued(generator, 1)
        generator.step()
        await waiting

    with pytest.raises(type(error), match=str(error)):
        asyncio.run(run())


def test_without_the_thread_nothing_is_waited_for(generator):
    generator._thread = SimpleNamespace(is_alive=lambda: False)
    with pytest.raises(StoppingError, match="unloaded"):
        asyncio.run(generator.between_steps(pytest.fail, stays))


def test_waiting_holds_no_thread(generator):
    """Many robots that wait leave the threads of other requests alone."""

    async def run():
        before = threading.active_count()
        waiting = [
            asyncio.create_task(generator.between_steps(threading.active_count, stays))
            for _ in range(60)
        ]
        await queued(generator, 60)
        assert threading.active_count() == before
        for _ in waiting:
            generator.step()
        await asyncio.gather(*waiting)

    asyncio.run(run())
    assert generator._work == deque()
