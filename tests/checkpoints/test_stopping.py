"""Within the block, the first signal that ends a command becomes an exception."""

import signal

import pytest

from mlx_vlm_moxin.checkpoints.stopping import STOP_SIGNALS, Stopped, stoppable


@pytest.fixture(autouse=True)
def handlers():
    """Restore the test process's signal handlers after each test."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_becomes_an_exception(number, handlers):
    with pytest.raises(Stopped), stoppable():
        signal.raise_signal(number)
    assert {each: signal.getsignal(each) for each in STOP_SIGNALS} == handlers


def test_a_second_signal_ends_the_process_while_it_cleans_up():
    found = set()

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            found.update(signal.getsignal(number) for number in STOP_SIGNALS)

    with pytest.raises(Stopped), stoppable():
        work()
    assert found == {signal.SIG_DFL}


def test_handlers_are_as_before_after_a_block_that_ends(handlers):
    with stoppable():
        assert signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == handlers
