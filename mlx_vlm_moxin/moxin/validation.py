"""Settings of a checkpoint's JSON files, checked against the dataclasses that receive them.

A field's annotation is the type of its value. Its metadata may have ``low`` and ``high``, the
smallest and the largest allowed number, and ``choices``, the allowed texts. Without ``low``, whole
numbers start at 1 and other numbers are above 0.
"""

import dataclasses
import json
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.json"
# Bounds unless a field has others. Sizes and counts start at 1, and no width, vocabulary or
# number of layers that fits in a machine's memory is beyond 2 ** 24.
_BOUNDS: dict[type, tuple[float, float]] = {int: (1, 2**24), float: (0, 1e12)}
_MAX_TEXT = 200
# Blocks of a tower or a decoder; building more would take minutes and gigabytes.
MAX_LAYERS = 1000

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 60


@dataclasses.dataclass(frozen=True)
class _Rule:
    """The allowed values of a setting: one of a few types, within bounds."""

    hint: Any
    low: float | None = None
    high: float | None = None
    choices: Sequence[str] | None = None

    def of(self, hint: Any) -> "_Rule":
        return dataclasses.replace(self, hint=hint)

    @property
    def _alternatives(self) -> tuple[Any, ...]:
        is_union = typing.get_origin(self.hint) in (typing.Union, types.UnionType)
        return typing.get_args(self.hint) if is_union else (self.hint,)

    def allows(self, value: Any) -> bool:
        """Whether ``value`` follows the rule."""
        return any(self._allows_one(value, hint) for hint in self._alternatives)

    def _allows_one(self, value: Any, hint: Any) -> bool:
        if hint is Any:
            return True
        if hint in (None, type(None)):
            return value is None
        if hint in (int, float):
            is_number = isinstance(value, (int, hint)) and not isinstance(value, bool)
            return is_number and self._is_within(value, hint)
        if hint is str:
            return isinstance(value, str) and (
                value in self.choices if self.choices else len(value) <= _MAX_TEXT
            )
        if typing.get_origin(hint) is list:
            (inner,) = typing.get_args(hint)
            return isinstance(value, (list, tuple)) and all(map(self.of(inner).allows, value))
        if dataclasses.is_dataclass(hint):
            # A dictionary is checked when it is converted to the dataclass.
            return isinstance(value, (hint, dict))
        return isinstance(value, typing.get_origin(hint) or hint)

    def _is_within(self, value: float, kind: type) -> bool:
        # NaN is within no bounds.
        low, high = _BOUNDS[kind]
        high = high if self.high is None else self.high
        if self.low is not None:
            return self.low <= value <= high
        return low < value <= high if kind is float else low <= value <= high

    def __str__(self) -> str:
        return ", or ".join(dict.fromkeys(map(self._describe, self._alternatives)))

    def _describe(self, hint: Any) -> str:
        if hint in (int, float):
            low, high = _BOUNDS[hint]
            kind = "a whole number" if hint is int else "a number"
            is_open = hint is float and self.low is None
            start = f"above {low}" if is_open else f"from {low if self.low is None else self.low}"
            return f"{kind} {start} to {high if self.high is None else self.high:.12g}"
        if hint is str and self.choices:
            return f"one of {', '.join(self.choices)}"
        if typing.get_origin(hint) is list:
            return f"a list of items that are each {self.of(typing.get_args(hint)[0])}"
        names = {str: "a text", bool: "true or false", type(None): "null"}
        return names.get(hint, "an object")


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of settings.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__} instead of a JSON object")
    return content


def check_setting(file: str, name: str, value: Any, hint: Any, **bounds: Any) -> None:
    """Refuse a value of a wrong type or out of bounds.

    Args:
        file: where the value is from, for the message.
        name: the setting's, with dots for nested ones.
        hint: the type, such as ``int`` or ``list[float] | None``.
        bounds: ``low``, ``high``, ``choices``.

    Raises:
        ValueError: naming file, setting, value and the allowed values.
    """
    rule = _Rule(hint, **bounds)
    if not rule.allows(value):
        raise ValueError(f"{file}: {name} is {_shorten.repr(value)}; allowed: {rule}")


def check_settings(
    kind: type, values: Mapping[str, Any], owner: str = "", file: str = CONFIG_FILE
) -> None:
    """Refuse values that the fields of a dataclass do not allow.

    Args:
        kind: the dataclass.
        values: by the name of the field. Other names are ignored, as are fields without value.
        owner: the setting that holds these values, for messages.

    Raises:
        ValueError: naming file, setting, value and the allowed values.
    """
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name in values:
            name = f"{owner}.{field.name}" if owner else field.name
            check_setting(file, name, values[field.name], hints[field.name], **field.metadata)
