"""Published accuracies, in per cent, of Moxin-7B-VLM and the models in the same table.

Source: arXiv 2412.06845v6 (Moxin's report), Table 8, which does not say which examples were
used. The models other than Moxin are Prismatic's, measured with the same harness.
"""

SOURCE = "arXiv 2412.06845, Table 8"
_COLUMNS = ("gqa", "vizwiz", "refcoco+", "ocid-ref", "vsr", "pope", "tallyqa")


def _row(*values: float) -> dict[str, float]:
    return dict(zip(_COLUMNS, values))


# By name of the checkpoint; all except Moxin's are Prismatic's ids.
PUBLISHED = {
    "moxin-7b-vlm": _row(64.88, 54.08, 71.3, 48.4, 60.8, 87.3, 66.0),
    "reproduction-llava-v15+7b": _row(61.58, 54.25, 49.47, 35.07, 51.47, 86.57, 62.06),
    "llama2-chat+7b": _row(62.11, 56.39, 58.5, 46.3, 61.8, 86.8, 58.1),
    "mistral-v0.1+7b": _row(63.3, 55.32, 65.1, 48.8, 58.5, 87.1, 61.7),
    "mistral-instruct-v0.1+7b": _row(62.71, 54.35, 64.9, 48.0, 57.8, 87.5, 64.5),
    "llama2+7b": _row(62.44, 55.98, 59.47, 43.89, 63.67, 86.74, 59.22),
}
MOXIN = "moxin-7b-vlm"


def match(model: str) -> str | None:
    """The name of the published row that a model's name contains; None if it contains none."""
    name = model.lower()
    return next((row for row in PUBLISHED if row in name), None)
