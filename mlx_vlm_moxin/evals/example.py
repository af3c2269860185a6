"""One example of a data set, and one line of what a model made of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

# A path; a URL; a picture; or what gives one when it is needed.
Picture = Path | str | Image.Image | Callable[[], Image.Image]


@dataclass(frozen=True)
class Example:
    """What a data set asks about one picture.

    Attributes:
        id: unique in the data set.
        text: question, caption or expression, as published.
        answer: right answer or answers, as the task's score needs them; JSON values.
        picture: what is asked about.
        picture_id: equal for equal pictures; their examples are computed together.
        group: part of the data set that is scored by itself, "" if there are none.
        choices: of a multiple-choice question.
    """

    id: str
    text: str
    answer: Any
    picture: Picture
    picture_id: str
    group: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a model made of an example: one line of the answers file.

    Attributes:
        model: name and settings of the model, for the reader.
        weights: which weights answered, see ``weights_id``.
        task: name of the task.
        id, group: the example's.
        prompt: the message that the model received.
        answer: the example's right answer.
        prediction: the model's.
        score: what it is worth, 0 to 1.
        probabilities: of the task's strings, None if the answer was generated.
    """

    model: str
    weights: str
    task: str
    id: str
    group: str
    prompt: str
    answer: Any
    prediction: str
    score: float
    probabilities: list[float] | None = None
