"""A run's results as the tables of docs/speed.md, README and docs/actions.md."""

from typing import Any

from .measures import ROWS, WIDTHS, name_of
from .report import Measures

# Beginnings of sides' names, and the columns that they fill; the first that fits.
COLUMNS = (
    ("ours", "here"),
    ("the same model", "MLX's kernels"),
    ("mlx-lm", "mlx-lm"),
    ("PyTorch, static cache, compiled", "PyTorch, compiled"),
    ("PyTorch", "PyTorch, eager"),
)
FEW_TOKENS = "tokens a round"
# README's rows, each at every width: title, and the measure's name in bfloat16.
README_ROWS = (
    ("first token, ms", "first-token"),
    ("decode, tokens/s", "decode"),
    ("batch 32, tokens/s", "decode-batch"),
    ("robot's action, ms", "act"),
)
# Rows of docs/actions.md, in the same way.
ACTIONS_ROWS = (
    ("one action, seven tokens", "act"),
    ("actions of 8 robots at once", "act-batch"),
    ("OpenVLA-OFT's chunk, two pictures", "act-chunk"),
)
NOTHING = {"unit": "", "sides": []}
PYTORCH = ("PyTorch, eager", "PyTorch, compiled")

Side = dict[str, Any]


def _column(side: Side) -> str:
    return next(title for start, title in COLUMNS if side["side"].startswith(start))


def _measured(measure: dict[str, Any]) -> list[Side]:
    """Sides with values, the fastest one first."""
    sides = [side for side in measure["sides"] if side["values"]]
    is_rate = measure["unit"] == "tokens/s"
    return sorted(sides, key=lambda side: side["median"], reverse=is_rate)


def _speed_up(measure: dict[str, Any], ours: Side, other: Side) -> str:
    """How many times as fast ours is: ``2.1x``."""
    ratio = ours["median"] / other["median"]
    ratio = ratio if measure["unit"] == "tokens/s" else 1 / ratio
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 0.95 else f"{ratio:.2f}x"


def amount(value: float) -> str:
    """Three digits, or four of a large value: ``1,420``."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cell(side: Side, notes: list[str]) -> str:
    """Median, and in brackets the extremes if they differ by more than a tenth, and notes."""
    low, high = min(side["values"]), max(side["values"])
    if high > 1.1 * low:
        notes = [f"{amount(low)} to {amount(high)}", *notes]
    mark = "\\*" if FEW_TOKENS in side["side"] else ""
    return amount(side["median"]) + mark + (f" ({'; '.join(notes)})" if notes else "")


def _line(cells: list[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def _rows(measure: dict[str, Any]) -> list[str]:
    """The fastest side of each column in the first row, the others below with their names."""
    sides = _measured(measure)
    columns = [[side for side in sides if _column(side) == title] for _, title in COLUMNS]
    if not columns[0]:
        return []
    ours, limit = columns[0][0], measure["limit"]
    first = [_cell(ours, [f"{ours['median'] / limit:.0%} of the limit"] if limit else [])]
    for column in columns[1:]:
        first.append(_cell(column[0], [_speed_up(measure, ours, column[0])]) if column else "")
    rows = [[f"{measure['title']}, {measure['unit']}", *first]]
    for index in range(1, max(map(len, columns))):
        rest = [column[index] if index < len(column) else None for column in columns]
        rows.append(["", *[_cell(side, [_way(side)]) if side else "" for side in rest]])
    return [_line(row) for row in rows]


def _way(side: Side) -> str:
    """A side's name without its column's and without the number of tokens."""
    _, _, rest = side["side"].partition(", ")
    return ", ".join(part for part in rest.split(", ") if FEW_TOKENS not in part)


def markdown(measures: Measures) -> str:
    """The table of a run: a row for each of ``ROWS`` and width, a column for each kind of side.

    An asterisk marks sides with fewer tokens in a round.
    """
    titles = ["", *[title for _, title in COLUMNS]]
    lines = [_line(titles), "|---|" + "--:|" * len(COLUMNS)]
    for row in (row for rows in ROWS.values() for row in rows):
        for name in (name_of(row, width) for width in WIDTHS):
            lines += _rows(measures[name]) if name in measures else []
    return "\n".join(lines)


def readme(measures: Measures) -> str:
    """README's table: a row for each of ``README_ROWS``, a column for each width.

    A cell has our fastest side and how many times as fast as the fastest other one it is.
    """
    lines = [_line(["", "in bf16", "8-bit", "4-bit"]), "|---|--:|--:|--:|"]
    for title, name in README_ROWS:
        cells = []
        for width in WIDTHS:
            measure = measures.get(name_of(name, width), NOTHING)
            sides = _measured(measure)
            ours = [side for side in sides if side["is_ours"]]
            others = [side for side in sides if not side["is_ours"]]
            notes = [_speed_up(measure, ours[0], others[0])] if ours and others else []
            cells.append(
                " ".join([amount(ours[0]["median"]), *map("({})".format, notes)]) if ours else ""
            )
        lines.append(_line([title, *cells]))
    return "\n".join(lines)


def actions(measures: Measures) -> str:
    """The table of docs/actions.md: ours at each width, and PyTorch in bfloat16."""
    titles = ["", "bf16", *[width.strip() for width in WIDTHS[1:]], *PYTORCH]
    lines = [_line(titles), "|---|" + "--:|" * (len(titles) - 1)]
    for title, name in ACTIONS_ROWS:
        shown = [title]
        for column, width in [*(("here", width) for width in WIDTHS), *((c, "") for c in PYTORCH)]:
            sides = _measured(measures.get(name_of(name, width), NOTHING))
            sides = [side for side in sides if _column(side) == column]
            shown.append(_cell(sides[0], []) if sides else "")
        lines.append(_line(shown))
    return "\n".join(lines)


def page_tables(measures: Measures) -> dict[str, str]:
    """The tables of a complete run by the page that has it."""
    return {
        "docs/speed.md": markdown(measures),
        "README.md": readme(measures),
        "docs/actions.md": actions(measures),
    }
