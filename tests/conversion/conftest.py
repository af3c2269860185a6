"""A target for conversions."""

import pytest


@pytest.fixture
def target(tmp_path):
    """A path in an otherwise empty folder."""
    place = tmp_path / "place"
    place.mkdir()
    return place / "model"
