"""The manifest's JSON, taken apart strictly: a field is asked for by name and type, what nobody asked for is refused.

Each refusal is a `BundleError` of the check "schema" that names the field and what to do.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import NoReturn, TypeVar

from models.errors import BundleError

RESTORE_HINT = "Restore the bundle from where you got it, or train the model again."

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


class StrictFields:
    """One JSON object, taken apart field by field; `end` refuses whatever was not asked for."""

    def __init__(self, value: object, location: str) -> None:
        if not isinstance(value, dict):
            refuse(f"must have an object at {location or 'its top'}")
        self._fields: dict[str, object] = dict(value)
        self._location = location

    def _path(self, name: str) -> str:
        return f"{self._location}.{name}" if self._location else name

    def take(self, name: str, kind: type[T]) -> T:
        """The field, of this type."""
        if name not in self._fields:
            refuse(f"lacks {self._path(name)}")
        value = self._fields.pop(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            refuse(f"must have a {kind.__name__} at {self._path(name)}")
        return value

    def child(self, name: str) -> StrictFields:
        """The object in a field."""
        return StrictFields(self.take(name, dict), self._path(name))

    def mapping(self, name: str) -> Mapping[str, object]:
        """The object in a field, whatever is in it."""
        value: dict[str, object] = self.take(name, dict)
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        value = self.take(name, int)
        if not low <= value <= high:
            refuse(f"must have a number from {low} to {high} at {self._path(name)}, not {value}")
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        value = self._fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            self._fields[name] = float(value) if abs(value) < 2**53 else math.inf
        number = self.take(name, float)
        if not math.isfinite(number):
            refuse(f"must have a finite number at {self._path(name)}")
        return number

    def names(self, name: str) -> tuple[str, ...]:
        """A list of names."""
        return tuple(check_name(item, self._path(name)) for item in self.take(name, list))

    def strings(self) -> Mapping[str, str]:
        """All fields that are left, each a text."""
        return {name: self.take(name, str) for name in self.keys()}

    def sha256(self, name: str) -> str:
        """A hash in hexadecimal digits."""
        value = self.take(name, str)
        if not _SHA256.fullmatch(value):
            refuse(f"must have 64 lower-case hexadecimal digits at {self._path(name)}")
        return value

    def keys(self) -> tuple[str, ...]:
        """The names of the fields that are left."""
        return tuple(self._fields)

    def expect_empty(self) -> None:
        """Refuse what is left."""
        if self._fields:
            refuse(f"has unknown fields: {', '.join(self._path(name) for name in self._fields)}")


def check_name(value: object, location: str) -> str:
    """`value`, which must be a name of letters, digits, - and _."""
    if not isinstance(value, str) or not _NAME.fullmatch(value.replace("-", "_")):
        refuse(f"must have names of letters, digits and _ at {location}, not {value!r}")
    return value


def parse_object(content: bytes) -> StrictFields:
    """The one object that `content` is."""
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
    """Say what is wrong with the manifest, and what to do."""
    raise BundleError(f"manifest.json {what}. {fix}", check="schema")
