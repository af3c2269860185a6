"""Set the address of this package's repository: ``make address URL=https://...``.

It is stored as `Repository` in pyproject.toml; model cards read it from the metadata of the
installed package. README, which is not generated, shows it to readers without a clone.
"""

import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

FOLDER = "mlx-vlm-moxin"
_ENTRY = re.compile(r'^Repository = "(.*)"\n', re.MULTILINE)
_HINT = re.compile(r"^# No `Repository` yet: .*\n", re.MULTILINE)
_CLONE = re.compile(rf"git clone \S+ {FOLDER}\b")
# README's explanation of the placeholder; it is removed with the placeholder.
_EXPLANATION = " (`ADDRESS` is where you found this page)"


def address(root: Path) -> str | None:
    """The address in ``root``'s pyproject.toml; None without one."""
    found = _ENTRY.search((root / "pyproject.toml").read_text(encoding="utf-8"))
    return found and found[1]


def set_address(root: Path, url: str) -> None:
    """Write ``url`` into pyproject.toml and README.md.

    Raises:
        ValueError: if it is no address of a web page.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or re.search(r'[\s"\\<>]', url):
        raise ValueError(f"{url[:200]!r} is not an address; for example https://host/owner/name")
    project, readme = root / "pyproject.toml", root / "README.md"
    text = _HINT.sub("", _ENTRY.sub("", project.read_text(encoding="utf-8")))
    section = "[project.urls]\n"
    text = text.replace(section, f'{section}Repository = "{url}"\n')
    project.write_text(text, encoding="utf-8")
    text = readme.read_text(encoding="utf-8").replace(_EXPLANATION, "")
    readme.write_text(_CLONE.sub(f"git clone {url} {FOLDER}", text), encoding="utf-8")


def main() -> int:
    """Set the address given; returns the exit status."""
    try:
        (url,) = sys.argv[1:]
        set_address(Path(__file__).parents[1], url)
    except ValueError as error:
        print(f"error: {error}" if sys.argv[1:] else "error: give URL=https://...", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
