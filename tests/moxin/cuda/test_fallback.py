"""What leaves the work to the modules, and what does not."""

import logging

import pytest
from mlx_vlm.models.moxin.cuda import device, fallback
from mlx_vlm.models.moxin.cuda.errors import UnsupportedError


@pytest.fixture
def reported(monkeypatch):
    """Errors after which the kernels are off."""
    errors = []
    monkeypatch.setattr(device, "enabled", lambda: True)
    monkeypatch.setattr(device, "disable_after", errors.append)
    return errors


def failing(error):
    @fallback.or_none("MLX computes it")
    def compute():
        raise error

    return compute


def test_arguments_and_results_are_passed_on(reported):
    @fallback.or_none("MLX computes it")
    def add(x, *, y):
        return x + y

    assert add(1, y=2) == 3


def test_nothing_is_computed_while_the_kernels_are_off(monkeypatch):
    monkeypatch.setattr(device, "enabled", lambda: False)
    assert failing(AssertionError())() is None


def test_what_is_not_supported_is_logged(reported, caplog):
    caplog.set_level(logging.DEBUG, fallback.logger.name)
    assert failing(UnsupportedError("an odd width"))() is None
    assert [record.getMessage() for record in caplog.records] == ["MLX computes it: an odd width"]
    assert reported == []


def test_a_kernel_that_fails_switches_the_kernels_off(reported):
    error = RuntimeError("no such kernel")
    assert failing(error)() is None
    assert reported == [error]


def test_other_errors_are_raised(reported):
    with pytest.raises(TypeError):
        failing(TypeError())()
