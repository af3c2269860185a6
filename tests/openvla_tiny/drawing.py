"""A table as a picture: moxin-tiny's shapes, a box, and a gripper with its shadow."""

from moxin_tiny.drawing import draw as draw_scene
from moxin_tiny.drawing import draw_thing
from moxin_tiny.scenes import Scene, Thing
from PIL import Image, ImageDraw

from .layouts import BOX_RADIUS
from .table import Item, Table

SIZE = 224
# Distance in the picture between the gripper at height 1 and its shadow.
LIFT = 0.14
BOX_COLOUR = (120, 78, 40)
# Half see-through, so that the gripper hides no item.
JAW_COLOUR = (60, 66, 78, 150)
JAW_OUTLINE = (255, 255, 255, 150)
HAND_COLOUR = (0, 170, 190, 150)
SHADOW = (0, 0, 0, 90)
# From the gripper's middle to each jaw: closed, open, and around an item. A closed gripper low over
# an item would otherwise look like one that holds it.
JAW_GAPS = (6, 18, 12)


def gripper_state(table: Table) -> int:
    """0 closed, 1 open, 2 holding an item."""
    return 2 if table.held is not None else int(table.is_open)


def things(table: Table) -> tuple[Thing, ...]:
    """The things on the table as moxin-tiny's things, without the one that the gripper holds."""
    return tuple(_thing(item, 0) for i, item in enumerate(table.items) if i != table.held)


def _thing(item: Item, lift: float) -> Thing:
    return Thing(
        item.shape, item.colour, "small", item.x, item.y - lift, item.radius * SIZE, item.mix,
        item.angle,
    )  # fmt: skip


def _draw_box(pen: ImageDraw.ImageDraw, box: tuple[float, float]) -> None:
    left, top, right, bottom = (
        (centre + sign * BOX_RADIUS) * SIZE for sign in (-1, 1) for centre in box
    )
    pen.rectangle((left, top, right, bottom), outline=BOX_COLOUR, width=6)


def _draw_gripper(pen: ImageDraw.ImageDraw, table: Table, lift: float) -> None:
    x, y = table.x * SIZE, (table.y - lift) * SIZE
    gap = JAW_GAPS[gripper_state(table)]
    for side in (-1, 1):
        near, far = sorted((x + side * gap, x + side * (gap + 6)))
        pen.rectangle((near, y - 14, far, y + 8), fill=JAW_COLOUR, outline=JAW_OUTLINE)
    pen.rectangle((x - gap - 6, y - 22, x + gap + 6, y - 14), fill=HAND_COLOUR)


def draw(table: Table) -> Image.Image:
    """The picture, RGB, 224 by 224 pixels."""
    lift = LIFT * table.z
    background = table.tint, table.texture, table.texture_seed
    image = draw_scene(Scene(SIZE, SIZE, *background, things(table)))
    pen = ImageDraw.Draw(image, "RGBA")
    _draw_box(pen, table.box)
    x, y = table.x * SIZE, table.y * SIZE
    pen.ellipse((x - 12, y - 5, x + 12, y + 5), fill=SHADOW)
    if table.held is not None:
        draw_thing(pen, _thing(table.items[table.held], lift), SIZE, SIZE)
    _draw_gripper(pen, table, lift)
    return image
