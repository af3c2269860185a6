"""A model that can answer the tasks, and small data sets in each published form."""

import shutil

import pytest
from small_data import write_all
from tiny_words import write_checkpoint

from mlx_vlm_moxin.library.load import load


@pytest.fixture(scope="session")
def words_checkpoint(tmp_path_factory):
    """moxin-tiny in float32 with the tasks' words."""
    return write_checkpoint(tmp_path_factory.mktemp("words") / "checkpoint")


@pytest.fixture(scope="session")
def words_model(words_checkpoint):
    """(model, processor) of it. Tests must not change either."""
    return load(words_checkpoint)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with a folder for each task. Tests must not change it."""
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture
def copy(data, tmp_path):
    """Copies a task's folder, so that a test can change it."""

    def make(task: str):
        return shutil.copytree(data / task, tmp_path / task)

    return make
