"""A scene as a picture: Pillow polygons and ellipses on a faintly textured background."""

import math
import random

from PIL import Image, ImageChops, ImageDraw

from .scenes import COLOURS, TINTS, UNNAMED_COLOURS, Scene, Thing

RGB = tuple[int, int, int]
Point = tuple[float, float]
# Vertices on the unit circle's scale, y downwards.
_SQUARE = [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]
_TRIANGLE = [(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)]
_ARM = 0.32
_CROSS = [
    (-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM),
    (_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM),
]  # fmt: skip
_STAR = [
    (r * math.sin(math.pi * k / 5), -r * math.cos(math.pi * k / 5))
    for k, r in enumerate([1.0, 0.42] * 5)
]
# The well-known heart curve, scaled to the unit circle.
_HEART = [
    (
        math.sin(t) ** 3 * 0.95,
        -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17,
    )
    for t in (math.tau * k / 40 for k in range(40))
]
OUTLINES = {
    "square": _SQUARE,
    "triangle": _TRIANGLE,
    "cross": _CROSS,
    "star": _STAR,
    "heart": _HEART,
}
_RING_HOLE = 0.55


def mix_colour(colour: str, mix: float) -> RGB:
    """The RGB bytes at ``mix`` (0 to 1) of a named colour's range."""
    ends = (COLOURS if colour in COLOURS else UNNAMED_COLOURS)[colour]
    return tuple(round(a + (b - a) * mix) for a, b in zip(*ends))


def _background(scene: Scene) -> Image.Image:
    """The tint, lighter and darker in places by at most a few per cent."""
    rng = random.Random(scene.texture_seed)
    size = scene.width, scene.height
    tint = Image.new("RGB", size, TINTS[scene.tint])
    if scene.texture == "flat":
        return tint
    if scene.texture == "gradient":
        grid = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270)))
        grid = grid.point(lambda value: 230 + value // 10)
    elif scene.texture == "clouds":
        cells = rng.randint(3, 8)
        grid = Image.new("L", (cells, cells))
        grid.putdata([rng.randint(228, 255) for _ in range(cells * cells)])
    else:
        stripes = rng.randint(4, 12)
        grid = Image.new("L", rng.choice(((stripes, 1), (1, stripes))))
        grid.putdata([240 if k % 2 else 255 for k in range(stripes)])
    resample = Image.Resampling.NEAREST if scene.texture == "stripes" else Image.Resampling.BILINEAR
    shade = grid.resize(size, resample)
    return ImageChops.multiply(tint, Image.merge("RGB", (shade, shade, shade)))


def _turned(points: list[Point], thing: Thing, centre: Point) -> list[Point]:
    cos, sin = math.cos(math.radians(thing.angle)), math.sin(math.radians(thing.angle))
    return [
        (
            centre[0] + thing.radius * (x * cos - y * sin),
            centre[1] + thing.radius * (x * sin + y * cos),
        )
        for x, y in points
    ]


def draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, width: int, height: int) -> None:
    """Draw one shape into a picture of ``width`` by ``height`` pixels."""
    centre = thing.x * width, thing.y * height
    fill = mix_colour(thing.colour, thing.mix)
    if thing.shape in OUTLINES:
        pen.polygon(_turned(OUTLINES[thing.shape], thing, centre), fill=fill)
    elif thing.shape == "circle":
        pen.circle(centre, 0.95 * thing.radius, fill=fill)
    else:
        ring = round((1 - _RING_HOLE) * thing.radius)
        pen.circle(centre, thing.radius, outline=fill, width=ring)


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, ``scene.width`` by ``scene.height`` pixels."""
    image = _background(scene)
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        draw_thing(pen, thing, scene.width, scene.height)
    return image
