"""An example of a data set, and a model's answer to one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

# A path, a URL, a picture, or a function that returns one when it is needed.
Picture = Path | str | Image.Image | Callable[[], Image.Image]


@dataclass(frozen=True)
class Example:
    """A question of a data set about one picture.

    Attributes:
        id: unique in the data set.
        text: question, caption or expression, as published.
        answer: correct answer or answers in the form that the task's score needs; JSON values.
        picture: the picture.
        picture_id: equal for equal pictures, whose examples are computed together.
        group: part of the data set that is scored separately; "" if there are none.
        choices: choices of a multiple-choice question.
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
    """A model's answer to an example: one line of the answers file.

    Attributes:
        model: name and settings of the model, for readers.
        weights: id of the weights that answered, see ``weights_id``.
        task: name of the task.
        id, group: the example's.
        prompt: the message that the model received.
        answer: the example's correct answer.
        prediction: the model's answer.
        score: score of the prediction, 0 to 1.
        probabilities: probabilities of the task's strings; None if the answer was generated.
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
