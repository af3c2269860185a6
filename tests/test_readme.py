"""README's numbers are the code's, and its links lead somewhere."""

import re
from pathlib import Path

import pytest
from set_address import address

from mlx_vlm_moxin.library.sizes import MOXIN_7B, cache_bytes, part_bytes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTEXT = 2048
# A README that is longer is not read.
MAX_WORDS = 1300
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize(("width", "bits"), [("4 bits", 4), ("8 bits", 8), ("bf16", None)])
def test_the_memory_that_a_width_needs_is_the_computed_one(width, bits):
    rows = [line for line in README.splitlines() if f"| {width} |" in line]
    needed = sum(part_bytes(MOXIN_7B, bits).values()) + CONTEXT * cache_bytes(MOXIN_7B)
    assert rows
    assert all(f"| {needed / 1e9:.1f} GB |" in row for row in rows)


def test_it_is_cloned_from_the_projects_address():
    url = address(ROOT)
    line = f"git clone {url or 'ADDRESS'} mlx-vlm-moxin && cd mlx-vlm-moxin"
    assert line in README.splitlines()
    assert ("`ADDRESS` is where you found this page" in README) == (url is None)


def test_it_is_short():
    assert len(README.split()) <= MAX_WORDS


def _anchors(text: str) -> set[str]:
    """Anchors of the headings, as they are made on the Hub and on code hosts."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / link) if link else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor[1:] in _anchors(target.read_text(encoding="utf-8")), anchor
