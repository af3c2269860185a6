"""mkdocs hooks: README and CONTRIBUTING as pages, and pictures from outside ``docs/``.

The pages link to each other and to files of the repository so that they can be read there; here
those links are rewritten for the site.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the two pages, and every picture that a page shows from outside ``docs/``."""
    for target, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=text))
    texts = [ROOT / source for source in PAGES.values()]
    for page in [*texts, *(ROOT / "docs").glob("*.md")]:
        for mark, _, link, _ in _LINK.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / link).resolve()
            if mark and path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "docs"):
                name = str(path.relative_to(ROOT))
                if files.get_file_from_path(name) is None:
                    files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def _rewritten(link: str, folder: Path) -> str | None:
    """``link`` of a page in ``folder`` as the site has it; None for a file of the repository.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = (folder / link).resolve()
    if not path.exists():
        raise FileNotFoundError(f"A page links to {link}, which does not exist")
    name = str(path.relative_to(ROOT))
    for target, source in PAGES.items():
        if name == source:
            return target
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return name if path.suffix in (".png", ".gif") else None


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite relative links; those to code become plain text with the path."""
    source = PAGES.get(page.file.src_uri)
    folder = ROOT if source else ROOT / "docs"

    def rewrite(match: re.Match) -> str:
        mark, text, link, anchor = match.groups()
        if re.match(r"[a-z]+:", link):
            return match[0]
        target = _rewritten(link, folder)
        if target is None:
            return f"{text} (`{(folder / link).resolve().relative_to(ROOT)}`)"
        return f"{mark}[{text}]({target}{anchor or ''})"

    return _LINK.sub(rewrite, markdown)
