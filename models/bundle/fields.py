"""Strict reading of a manifest's JSON: each field has a name and a type, and unknown fields are refused.

Each refusal is a `BundleError` (check "schema") that names the field and what to do.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import NoReturn, TypeVar

from models.errors import BundleError

RESTORE_HINT = "Restore the bundle from where you got it, or train the model again."

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


class StrictFields:
    """One JSON object that is read field by field. At the end, `expect_empty` refuses the fields that were not read."""

    def __init__(self, value: object, location: str) -> None:
        if not isinstance(value, dict):
            refuse(f"must have an object at {location or 'its top'}")
        self._fields: dict[str, object] = dict(value)
        self.location = location

    def _path(self, name: str) -> str:
        return f"{self.location}.{name}" if self.location else name

    def take(self, name: str, kind: type[T]) -> T:
        """Read a field of this type."""
        if name not in self._fields:
            refuse(f"lacks {self._path(name)}")
        value = self._fields.pop(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            refuse(f"must have a {kind.__name__} at {self._path(name)}")
        return value

    def child(self, name: str) -> StrictFields:
        """Read a field that is an object, to be read strictly too."""
        return StrictFields(self.take(name, dict), self._path(name))

    def children(self, name: str) -> Iterator[StrictFields]:
        """Read a field that is a list of objects, each to be read strictly too."""
        for index, item in enumerate(self.take(name, list)):
            yield StrictFields(item, f"{self._path(name)}.{index}")

    def mapping(self, name: str) -> Mapping[str, object]:
        """Read a field that is an object with any content."""
        value: dict[str, object] = self.take(name, dict)
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        """Read an integer from `low` to `high`."""
        value = self.take(name, int)
        if not low <= value <= high:
            refuse(f"must have a number from {low} to {high} at {self._path(name)}, not {value}")
        return value

    def number(self, name: str) -> float:
        """Read a finite number."""
        value = self._fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            self._fields[name] = float(value) if abs(value) < 2**53 else math.inf
        number = self.take(name, float)
        if not math.isfinite(number):
            refuse(f"must have a finite number at {self._path(name)}")
        return number

    def names(self, name: str) -> tuple[str, ...]:
        """Read a list of names."""
        return tuple(check_name(item, self._path(name)) for item in self.take(name, list))

    def strings(self) -> Mapping[str, str]:
        """Read all remaining fields, each a string."""
        return {name: self.take(name, str) for name in self.keys()}

    def sha256(self, name: str) -> str:
        """Read a SHA-256 in hexadecimal digits."""
        value = self.take(name, str)
        if not _SHA256.fullmatch(value):
            refuse(f"must have 64 lower-case hexadecimal digits at {self._path(name)}")
        return value

    def keys(self) -> tuple[str, ...]:
        """The names of the remaining fields."""
        return tuple(self._fields)

    def expect_empty(self) -> None:
        """Refuse remaining fields."""
        if self._fields:
            refuse(f"has unknown fields: {', '.join(self._path(name) for name in self._fields)}")


def check_name(value: object, location: str) -> str:
    """`value`, if it is a name of letters, digits, - and _."""
    if not isinstance(value, str) or not _NAME.fullmatch(value.replace("-", "_")):
        refuse(f"must have names of letters, digits and _ at {location}, not {value!r}")
    return value


def parse_object(content: bytes) -> StrictFields:
    """The JSON object in `content`."""
    try:
        document = json.loads(content, parse_constant=_reject_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        refuse(f"is not valid JSON ({error})")
    return StrictFields(document, "")


def _reject_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return document


def refuse(what: str, fix: str = RESTORE_HINT) -> NoReturn:
    """Raise the error that says what is wrong with the manifest, and what to do."""
    raise BundleError(f"manifest.json {what}. {fix}", check="schema")
