"""The tasks as data: prompts, data sets and scores.

Prompts, splits and scores are those of TRI-ML/vlm-evaluation, Prismatic's harness, which Moxin's
report used.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mlx_vlm_moxin.evals.data import ai2d, gqa, ocid_ref, pope, refer, tallyqa, textvqa, vizwiz, vsr
from mlx_vlm_moxin.evals.data import vqav2 as vqa
from mlx_vlm_moxin.evals.data.source import Source
from mlx_vlm_moxin.evals.example import Example
from mlx_vlm_moxin.evals.pope_scores import predicted_label
from mlx_vlm_moxin.evals.scores import summary, text
from mlx_vlm_moxin.evals.scores.boxes import iou, parse_box
from mlx_vlm_moxin.evals.scores.summary import Summary

SHORT = "{text}\nAnswer the question using a single word or phrase."
UNCERTAIN = (
    "{text}\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    "\nAnswer the question using a single word or phrase."
)
TRUE_FALSE = (
    'Based on the image, is this statement "True" or "False"? {text}'
    '\nRespond with "True" or "False" directly.'
)
REFERRING = (
    'Please provide the bounding box coordinate of the region this sentence describes: "{text}"'
)
CHOICE = "{text}\n{choices}\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Task:
    """One row of the table.

    Attributes:
        title: name in the published table.
        template: template of the message, with ``{text}`` and, for multiple choice,
            ``{choices}``.
        read: yields the examples of a source.
        score: score of a prediction, 0 to 1, given the example's answer.
        summarise: computes the task's numbers.
        split: split of the data set.
        examples: number of examples in the full split.
        files: contents of a local copy.
        strings: the prediction is the string with the most likely first token; None if answers
            are generated.
        hub: a Hub repository with the same examples as the published form.
        splits: parts that the published harness samples separately.
        folder: another task whose data set and published number this task shares; "" if none.
        remark: known differences from the published numbers, or what is unknown about them.
    """

    title: str
    template: str
    read: Callable[[Source], Iterable[Example]]
    score: Callable[[str, Any], float]
    summarise: Summary
    split: str
    examples: int
    files: str
    strings: tuple[str, ...] | None = None
    hub: str | None = None
    splits: tuple[str, ...] = ()
    folder: str = ""
    remark: str = ""

    def prompt(self, example: Example) -> str:
        """The message for the model."""
        letters = (chr(ord("A") + index) for index in range(len(example.choices)))
        choices = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, example.choices))
        return self.template.format(text=example.text, choices=choices)


def _equal(prediction: str, answer: str) -> float:
    return float(prediction == answer)


def _covers(threshold: float) -> Callable[[str, Any], float]:
    def score(prediction: str, answer: list[float]) -> float:
        box = parse_box(prediction)
        return float(box is not None and iou(box, answer) >= threshold)

    return score


def _says(prediction: str, answer: str) -> float:
    return float(predicted_label(prediction) == answer.lower())


def _letters(count: int) -> tuple[str, ...]:
    return tuple(chr(ord("A") + index) for index in range(count))


def _refer(title: str, data: refer.Refer, examples: int, remark: str = "") -> Task:
    return Task(
        title=title,
        template=REFERRING,
        read=data,
        score=_covers(0.5),
        summarise=summary.boxes(),
        split="val",
        examples=examples,
        files=f"{data.refs_file}, instances.json and train2014/ of COCO",
        remark=remark,
    )


def _pope(**changes: Any) -> Task:
    settings = {
        "title": "POPE",
        "template": SHORT,
        "read": pope.read,
        "score": _equal,
        "summarise": summary.pope(*pope.GROUPS),
        "split": "adversarial, popular, random",
        "examples": 8910,
        "files": "coco_pope_*.json and val2014/ of COCO",
        "strings": ("Yes", "No"),
        "hub": "lmms-lab/POPE",
        "splits": pope.GROUPS,
        "remark": "the published harness expects 9,000 questions and its files hold 8,910",
    }
    return Task(**{**settings, **changes})


TASKS = {
    "vsr": Task(
        title="VSR",
        template=TRUE_FALSE,
        read=vsr.read,
        score=_equal,
        summarise=summary.true_or_false,
        split="zero-shot test",
        examples=1222,
        files="test.jsonl and images/",
        strings=("True", "False"),
        hub="cambridgeltl/vsr_zeroshot",
    ),
    "pope": _pope(),
    "pope-text": _pope(
        title="POPE, generated",
        score=_says,
        strings=None,
        folder="pope",
        remark="answers are generated and read by POPE's rule; the published number is of the "
        "probabilities of Yes and No",
    ),
    "gqa": Task(
        title="GQA",
        template=SHORT,
        read=gqa.read,
        score=text.gqa_score,
        summarise=summary.pooled(),
        split="testdev_balanced",
        examples=12578,
        files="testdev_balanced_questions.json and images/",
        hub="lmms-lab/GQA",
    ),
    "vizwiz": Task(
        title="VizWiz",
        template=UNCERTAIN,
        read=vizwiz.read,
        score=text.vizwiz_score,
        summarise=summary.vizwiz(text.vizwiz_form, vizwiz.GROUPS),
        split="val",
        examples=4319,
        files="val.json and val/",
        hub="lmms-lab/VizWiz-VQA",
    ),
    "refcoco+": _refer("RefCOCO+", refer.REFCOCO_PLUS, 10758),
    "refcoco": _refer("RefCOCO", refer.REFCOCO, 10834),
    "refcocog": _refer("RefCOCOg", refer.REFCOCOG, 4896),
    "ocid-ref": Task(
        title="OCID-Ref",
        template=REFERRING,
        read=ocid_ref.read,
        score=_covers(0.25),
        summarise=summary.boxes(*ocid_ref.GROUPS),
        split="val",
        examples=18342,
        files="val_expressions.json and OCID-dataset/",
        splits=ocid_ref.GROUPS,
    ),
    "tallyqa": Task(
        title="TallyQA",
        template=CHOICE,
        read=tallyqa.read,
        score=_equal,
        summarise=summary.pooled(*tallyqa.GROUPS),
        split="test",
        examples=38589,
        files="test.json, VG_100K/ and VG_100K_2/",
        strings=_letters(len(tallyqa.CHOICES)),
        splits=tallyqa.GROUPS,
        remark="the published number may be of 8,192 simple and 8,192 complex questions "
        "(--limit 8192)",
    ),
    "ai2d": Task(
        title="AI2D",
        template=CHOICE,
        read=ai2d.read,
        score=_equal,
        summarise=summary.pooled(*ai2d.GROUPS),
        split="val and test",
        examples=15501,
        files="questions/, images/ and ai2d_test_ids.csv",
        strings=_letters(4),
        splits=ai2d.GROUPS,
    ),
    "textvqa": Task(
        title="TextVQA",
        template=SHORT,
        read=textvqa.read,
        score=text.textvqa_score,
        summarise=summary.pooled(),
        split="val",
        examples=5000,
        files="TextVQA_0.5.1_val.json and train_images/",
    ),
    "textvqa-ocr": Task(
        title="TextVQA with OCR",
        template=SHORT,
        read=textvqa.read_with_ocr,
        score=text.textvqa_score,
        summarise=summary.pooled(),
        split="val",
        examples=5000,
        files="TextVQA_0.5.1_val.json, textvqa_val_v051_ocr.jsonl and train_images/",
        folder="textvqa",
    ),
    "vqav2": Task(
        title="VQAv2",
        template=SHORT,
        read=vqa.read,
        score=text.vqa_score,
        summarise=summary.pooled(*vqa.GROUPS),
        split="val",
        examples=214354,
        files="the questions and annotations files of val2014 and val2014/ of COCO",
        remark="published numbers may be of 16,384 questions (--limit 16384)",
    ),
}
