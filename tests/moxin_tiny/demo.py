"""The bundled picture: ``python -m moxin_tiny.demo``, run in ``tests``, draws demo.png."""

from . import DEMO
from .drawing import draw
from .scenes import Scene, Thing

SCENE = Scene(
    width=240,
    height=200,
    tint="cream",
    texture="flat",
    texture_seed=0,
    things=(
        Thing("circle", "red", "large", x=0.24, y=0.30, radius=40, mix=0.2, angle=0),
        Thing("star", "blue", "small", x=0.76, y=0.26, radius=24, mix=0.8, angle=6),
        Thing("triangle", "green", "large", x=0.55, y=0.72, radius=41, mix=0.3, angle=-4),
    ),
)
# Questions about it, and the right answers.
QUESTIONS = (
    ("What colour is the circle?", "red"),
    ("Which shape is blue?", "star"),
    ("How many shapes are there?", "three"),
    ("Is there a square?", "no"),
    ("Is there a triangle below the star?", "yes"),
    ("Where is the circle?", "top left"),
    ("How large is the star?", "small"),
    ("Describe the image.", "A large red circle, a large green triangle and a small blue star."),
)


if __name__ == "__main__":
    draw(SCENE).save(DEMO, optimize=True)
