"""Questions about a scene that have exactly one right answer, and that answer.

A question is generated only if its words identify one shape (a "the" never fits two), if
no position or order in it is a close call and, in training, if its text names no held-out
combination.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise, product

from .scenes import (
    COLOURS,
    HELD_OUT_COMBINATIONS,
    HELD_OUT_SPLITS,
    MAX_THINGS,
    RADII,
    SHAPES,
    Scene,
    Thing,
)

KINDS = ("colour", "shape", "count", "exists", "relation", "place", "size", "describe")
NUMBERS = ("zero", "one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
# Fractions of the picture's side: differences below these are close calls.
RELATION_MARGIN = 0.08
PLACE_MARGIN = 0.07
MAX_DESCRIBED = 3

Answers = dict[str, list[str]]


@dataclass(frozen=True)
class Question:
    """A question of one of ``KINDS`` and the answer that counts as right."""

    kind: str
    text: str
    answer: str


def prompt(text: str) -> str:
    """A question in Prismatic's "pure" prompt format."""
    return f"In: {text}\nOut:"


_HELD_OUT = re.compile("|".join(f"{c} {s}" for c, s in sorted(HELD_OUT_COMBINATIONS)))


def names_held_out(text: str) -> bool:
    """Whether a text names a combination that training must not know."""
    return _HELD_OUT.search(text) is not None


def _references(scene: Scene, *attributes: str) -> list[tuple[str, Thing]]:
    """Phrases of ``attributes`` and a shape that fit one thing only, with that thing."""
    forms = [("shape",)] + [(attribute, "shape") for attribute in attributes]
    found = []
    for form in forms:
        phrases = [" ".join(getattr(thing, name) for name in form) for thing in scene.things]
        found += [(p, t) for p, t in zip(phrases, scene.things) if phrases.count(p) == 1]
    return found


def _matching(scene: Scene) -> list[tuple[str, int, bool]]:
    """Every noun phrase, the number of things that it fits, and whether it is near.

    A phrase is near if it shares a word with the scene: a "no" or "zero" then needs a
    closer look.
    """
    shapes = Counter(t.shape for t in scene.things)
    colours = Counter(t.colour for t in scene.things)
    sizes = Counter(t.size for t in scene.things)
    pairs = Counter(t.combination for t in scene.things)
    found = [(shape, shapes[shape], shape in shapes) for shape in SHAPES]
    found += [
        (f"{colour} {shape}", pairs[colour, shape], colour in colours or shape in shapes)
        for colour, shape in product(COLOURS, SHAPES)
    ]
    found += [(f"{colour} shape", colours[colour], colour in colours) for colour in COLOURS]
    return found + [(f"{size} shape", sizes[size], size in sizes) for size in RADII]


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _colour(scene: Scene) -> Answers:
    answers: Answers = {}
    for phrase, thing in _references(scene, "size"):
        for ask in ("What colour is the {}?", "Which colour does the {} have?"):
            answers.setdefault(thing.colour, []).append(ask.format(phrase))
    return answers


def _shape(scene: Scene) -> Answers:
    answers: Answers = {}
    for colour in COLOURS:
        things = [t for t in scene.things if t.colour == colour]
        if len(things) == 1:
            for ask in ("Which shape is {}?", "What is the {} shape?"):
                answers.setdefault(things[0].shape, []).append(ask.format(colour))
    return answers


def _count(scene: Scene) -> Answers:
    answers: Answers = {NUMBERS[len(scene.things)]: ["How many shapes are there?"] * MAX_THINGS}
    for phrase, count, near in _matching(scene):
        if near:
            text = f"How many {phrase}{'es' if phrase.endswith('s') else 's'} are there?"
            answers.setdefault(NUMBERS[count], []).append(text)
    return answers


def _exists(scene: Scene) -> Answers:
    answers: Answers = {}
    for phrase, count, near in _matching(scene):
        # A "no" about something unlike everything in the picture is easy: fewer of those.
        texts = [f"Is there {_article(phrase)}?"] * (3 if near else 1)
        answers.setdefault("yes" if count else "no", []).extend(texts)
    return answers


def offset(relation: str, thing: Thing, other: Thing) -> float:
    """How far ``thing`` is on the ``relation`` side of ``other``; negative beyond it."""
    dx, dy = thing.x - other.x, thing.y - other.y
    return {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]


def _relation(scene: Scene) -> Answers:
    answers: Answers = {}
    present = sorted({t.shape for t in scene.things})
    absent = [shape for shape in SHAPES if shape not in present][:1]
    for phrase, other in _references(scene, "colour"):
        for shape, relation in product(present + absent, RELATIONS):
            things = [t for t in scene.things if t.shape == shape and t is not other]
            if not things and shape == other.shape:
                continue
            offsets = [offset(relation, thing, other) for thing in things]
            if any(abs(value) < RELATION_MARGIN for value in offsets):
                continue
            answer = "yes" if any(value > 0 for value in offsets) else "no"
            texts = [f"Is there {_article(shape)} {relation} the {phrase}?"]
            # "Is the circle above the star?" needs a circle, and only one.
            if len(things) == 1 and shape != other.shape:
                texts = 2 * [*texts, f"Is the {shape} {relation} the {phrase}?"]
            answers.setdefault(answer, []).extend(texts)
    return answers


def _place(scene: Scene) -> Answers:
    answers: Answers = {}
    for phrase, thing in _references(scene, "colour", "size"):
        if min(abs(thing.x - 0.5), abs(thing.y - 0.5)) > PLACE_MARGIN:
            place = f"{'top' if thing.y < 0.5 else 'bottom'} {'left' if thing.x < 0.5 else 'right'}"
            answers.setdefault(place, []).append(f"Where is the {phrase}?")
    return answers


def _size(scene: Scene) -> Answers:
    answers: Answers = {}
    for phrase, thing in _references(scene, "colour"):
        for ask in ("Is the {} small or large?", "How large is the {}?"):
            answers.setdefault(thing.size, []).append(ask.format(phrase))
    return answers


def _describe(scene: Scene) -> Answers:
    """Up to three things, named from left to right where that order is clear."""
    things = sorted(scene.things, key=lambda thing: thing.x)
    gaps = [right.x - left.x for left, right in pairwise(things)]
    if len(things) > MAX_DESCRIBED or any(gap < RELATION_MARGIN for gap in gaps):
        return {}
    phrases = [f"a {t.size} {t.colour} {t.shape}" for t in things]
    text = " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))
    return {f"A{text[1:]}.": ["Describe the image."]}


_ASK = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "exists": _exists,
    "relation": _relation,
    "place": _place,
    "size": _size,
    "describe": _describe,
}


def possible_answers(scene: Scene, kind: str, split: str) -> Answers:
    """The possible questions of one kind about a scene, by their answer."""
    answers = _ASK[kind](scene)
    if split not in HELD_OUT_SPLITS:
        answers = {a: [t for t in texts if not names_held_out(t)] for a, texts in answers.items()}
    return {answer: texts for answer, texts in answers.items() if texts}


def ask(scene: Scene, kind: str, split: str, rng: random.Random) -> Question | None:
    """A random question of one kind, or None where the scene allows none.

    The answer is drawn first, so that common answers do not occur more often.
    """
    answers = possible_answers(scene, kind, split)
    if not answers:
        return None
    answer = rng.choice(sorted(answers))
    return Question(kind, rng.choice(answers[answer]), answer)
