"""Random tables from a seed, and what only the test set contains.

As in moxin-tiny, training has neither the held-out background tints, nor the held-out colour mixes,
nor seven combinations of colour and shape; every test instruction names a held-out combination.
Training also shows every shape in unnamed colours, which no instruction mentions, so that a model
does not learn which shapes a colour never has.
"""

import random

from moxin_tiny.scenes import (
    COLOURS,
    HELD_OUT_COMBINATIONS,
    HELD_OUT_MIXES,
    HELD_OUT_TINTS,
    SHAPES,
    TEXTURES,
    TINTS,
    TRAIN_MIXES,
    UNNAMED_COLOURS,
)

from .table import Item, Table

SPLITS = ("train", "validation", "test")
# Nine to ten of the 112 pixels: in smaller shapes the towers do not tell a heart from a triangle.
RADII = (0.08, 0.09)
BOX_RADIUS = 0.1
# Minimum distance to the edge, so that the gripper can reach either side of an item.
MARGIN = 0.2
GAP = 0.09
MAX_ITEMS = 4
# Share of the training tables with fewer items that get one more, in an unnamed colour.
UNNAMED = 0.4
# Minimum distance from the gripper's start to every item.
CLEARANCE = 0.12


def layout_random(split: str, index: int) -> random.Random:
    """The random source of table ``index`` of ``split``; splits share no seed."""
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; known: {', '.join(SPLITS)}")
    return random.Random(f"openvla-tiny/{split}/{index}")


def _names(rng: random.Random, count: int, held_out: bool) -> list[tuple[str, str]]:
    """``count`` different pairs of colour and shape; the first is held out if requested.

    Colours and shapes repeat often, so that an instruction's two words are both needed; in
    training more often still.
    """
    few = not held_out and rng.random() < 0.5
    colours = rng.sample(tuple(COLOURS), rng.randint(2, 3 if few else len(COLOURS)))
    shapes = rng.sample(SHAPES, rng.randint(2, 3 if few else len(SHAPES)))
    if held_out:
        first = rng.choice(sorted(HELD_OUT_COMBINATIONS))
        colours, shapes = {first[0], *colours}, {first[1], *shapes}
    pairs = [(c, s) for c in sorted(colours) for s in sorted(shapes)]
    if not held_out:
        known = [pair for pair in pairs if pair not in HELD_OUT_COMBINATIONS]
        return rng.sample(known, min(count, len(known)))
    others = [pair for pair in pairs if pair != first]
    return [first, *rng.sample(others, min(count - 1, len(others)))]


def _places(rng: random.Random, radii: list[float]) -> list[tuple[float, float]] | None:
    """Centres that keep everything apart, or None if none were found."""
    places: list[tuple[float, float]] = []
    for index, radius in enumerate(radii):
        for _ in range(40):
            x, y = rng.uniform(MARGIN, 1 - MARGIN), rng.uniform(MARGIN, 1 - MARGIN)
            if all(
                (x - a) ** 2 + (y - b) ** 2 > (radius + other + GAP) ** 2
                for (a, b), other in zip(places, radii[:index])
            ):
                places.append((x, y))
                break
        else:
            return None
    return places


def make_table(split: str, index: int) -> tuple[Table, random.Random]:
    """Table ``index`` of ``split``, the same every time, and its random source for further use.

    The item for an instruction comes first.

    Raises:
        ValueError: for an unknown split.
    """
    rng = layout_random(split, index)
    held_out = split != "train"
    while True:
        names = _names(rng, rng.randint(2, MAX_ITEMS), held_out)
        if len(names) < 2:
            continue
        if not held_out and len(names) < MAX_ITEMS and rng.random() < UNNAMED:
            names.append((rng.choice(tuple(UNNAMED_COLOURS)), rng.choice(SHAPES)))
        count = len(names)
        radii = [rng.uniform(*RADII) for _ in range(count)]
        places = _places(rng, [*radii, BOX_RADIUS])
        if places is not None:
            break
    mixes = HELD_OUT_MIXES if held_out else TRAIN_MIXES
    items = tuple(
        Item(shape, colour, x, y, radius, rng.uniform(*rng.choice(mixes)), rng.uniform(-15, 15))
        for (colour, shape), (x, y), radius in zip(names, places, radii)
    )
    while True:
        x, y = rng.uniform(0.05, 0.95), rng.uniform(0.15, 0.95)
        if all(item.distance(x, y) > CLEARANCE for item in items):
            break
    table = Table(
        items=items,
        box=places[-1],
        x=x,
        y=y,
        z=1.0,
        is_open=True,
        held=None,
        tint=rng.choice([tint for tint in TINTS if (tint in HELD_OUT_TINTS) == held_out]),
        texture=rng.choice(TEXTURES),
        texture_seed=rng.getrandbits(32),
    )
    return table, rng
