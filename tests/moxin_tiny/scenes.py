"""The contents of pictures, drawn at random from a seed, and how the splits differ.

Every picture of the two other splits has a background tint and colour mixes that no
training picture has, and at least one combination of colour and shape that is in no
training picture and in no training text. ``validation`` and ``test`` differ in their
seeds: the first was used to choose sizes and settings, the second gives the figures.
"""

import random
from dataclasses import dataclass

SPLITS = ("train", "validation", "test")
HELD_OUT_SPLITS = ("validation", "test")
MAX_THINGS = 4

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart")
# Each colour is a range of mixes between two RGB ends.
COLOURS = {
    "red": ((195, 15, 25), (245, 50, 45)),
    "orange": ((240, 115, 0), (255, 155, 40)),
    "yellow": ((230, 200, 0), (255, 235, 70)),
    "green": ((15, 110, 35), (60, 180, 70)),
    "blue": ((15, 55, 185), (50, 120, 245)),
    "purple": ((90, 25, 145), (145, 65, 205)),
    "pink": ((240, 105, 175), (255, 155, 210)),
    "black": ((0, 0, 5), (45, 45, 50)),
}
# Colours that no question and no instruction names; OpenVLA-tiny's training shows shapes in them.
UNNAMED_COLOURS = {
    "lime": ((150, 215, 20), (185, 240, 70)),
    "magenta": ((205, 0, 120), (235, 30, 160)),
    "grey": ((105, 105, 110), (140, 140, 145)),
    "maroon": ((100, 10, 25), (130, 35, 50)),
    "navy": ((10, 15, 90), (35, 45, 130)),
    "salmon": ((235, 130, 110), (250, 160, 140)),
}
# Background tints: light and pale, so that every colour stands out.
TINTS = {
    "white": (252, 252, 252),
    "cream": (250, 243, 222),
    "sand": (226, 212, 184),
    "sky": (214, 230, 245),
    "rose": (243, 221, 221),
    "grey": (205, 208, 212),
    "steel": (172, 184, 202),
    "olive": (200, 205, 172),
    "clay": (216, 196, 186),
    "mint": (206, 236, 220),
    "lilac": (226, 216, 242),
    "stone": (184, 186, 180),
}
HELD_OUT_TINTS = ("mint", "lilac", "stone")
# One combination per shape, with seven of the eight colours.
HELD_OUT_COMBINATIONS = frozenset(
    {
        ("purple", "circle"),
        ("pink", "square"),
        ("blue", "triangle"),
        ("green", "star"),
        ("orange", "cross"),
        ("red", "ring"),
        ("yellow", "heart"),
    }
)
# Mixes in [0, 1]: training has the ends of a colour's range, the other splits its middle. The
# gap between them is wide enough that no two of them round to the same RGB bytes.
TRAIN_MIXES = ((0.0, 0.35), (0.65, 1.0))
HELD_OUT_MIXES = ((0.4, 0.6),)

TEXTURES = ("flat", "gradient", "clouds", "stripes")
# Radius as a fraction of the square root of the picture's area.
RADII = {"small": (0.095, 0.12), "large": (0.165, 0.2)}


@dataclass(frozen=True)
class Thing:
    """One shape in a picture; ``x`` and ``y`` are fractions of width and height."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    mix: float
    angle: float

    @property
    def combination(self) -> tuple[str, str]:
        """Colour and shape."""
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """The contents of a picture; width and height in pixels."""

    width: int
    height: int
    tint: str
    texture: str
    texture_seed: int
    things: tuple[Thing, ...]


def scene_random(split: str, index: int) -> random.Random:
    """The random source of picture ``index`` of ``split``; splits share no seed."""
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; known: {', '.join(SPLITS)}")
    return random.Random(f"moxin-tiny/{split}/{index}")


def _combinations(rng: random.Random, count: int, held_out: bool) -> list[tuple[str, str]]:
    """``count`` pairs of colour and shape, with repeated shapes and colours about half the time."""
    shapes = rng.sample(SHAPES, rng.randint(1, len(SHAPES)))
    colours = rng.sample(tuple(COLOURS), rng.randint(1, len(COLOURS)))
    known = [(c, s) for c in colours for s in shapes if (c, s) not in HELD_OUT_COMBINATIONS]
    every = known + sorted(HELD_OUT_COMBINATIONS)
    if not held_out:
        known = known or [("black", shapes[0])]
        return [rng.choice(known) for _ in range(count)]
    chosen = [rng.choice(sorted(HELD_OUT_COMBINATIONS))]
    chosen += [rng.choice(every) for _ in range(count - 1)]
    rng.shuffle(chosen)
    return chosen


def _place(
    rng: random.Random, radii: list[float], width: int, height: int
) -> list[tuple[float, float]] | None:
    """Centres in pixels that keep the shapes apart and inside, or None if none were found."""
    centres = []
    for index, radius in enumerate(radii):
        for _ in range(40):
            x = rng.uniform(1.05 * radius, width - 1.05 * radius)
            y = rng.uniform(1.05 * radius, height - 1.05 * radius)
            gaps = (
                (x - a) ** 2 + (y - b) ** 2 - (1.12 * (radius + other)) ** 2
                for (a, b), other in zip(centres, radii[:index])
            )
            if all(gap > 0 for gap in gaps):
                centres.append((x, y))
                break
        else:
            return None
    return centres


def draw_scene(split: str, index: int) -> Scene:
    """Picture ``index`` of ``split``: the same every time.

    Raises:
        ValueError: for an unknown split.
    """
    rng = scene_random(split, index)
    held_out = split in HELD_OUT_SPLITS
    while True:
        width, height = rng.randint(112, 240), rng.randint(112, 240)
        if not 0.66 < width / height < 1.5:
            continue
        unit = (width * height) ** 0.5
        pairs = _combinations(rng, rng.randint(1, MAX_THINGS), held_out)
        sizes = [rng.choice(tuple(RADII)) for _ in pairs]
        radii = [unit * rng.uniform(*RADII[size]) for size in sizes]
        centres = _place(rng, radii, width, height)
        if centres is not None:
            break
    mixes = HELD_OUT_MIXES if held_out else TRAIN_MIXES
    things = tuple(
        Thing(
            shape=shape,
            colour=colour,
            size=size,
            x=x / width,
            y=y / height,
            radius=radius,
            mix=rng.uniform(*rng.choice(mixes)),
            angle=rng.uniform(-15, 15),
        )
        for (colour, shape), size, radius, (x, y) in zip(pairs, sizes, radii, centres)
    )
    tints = [tint for tint in TINTS if (tint in HELD_OUT_TINTS) == held_out]
    return Scene(
        width=width,
        height=height,
        tint=rng.choice(tints),
        texture=rng.choice(TEXTURES),
        texture_seed=rng.getrandbits(32),
        things=things,
    )
