"""A target for conversions, and a shorter verification."""

import pytest

from mlx_vlm_moxin.conversion.verify import compare


@pytest.fixture
def target(tmp_path):
    """A path in an otherwise empty folder."""
    place = tmp_path / "place"
    place.mkdir()
    return place / "model"


@pytest.fixture
def short_answers(monkeypatch):
    """Verification compares 12 tokens of each answer: enough to tell damage and widths apart."""
    monkeypatch.setattr(compare, "ANSWER_TOKENS", 12)
