"""The rows of a training run of any kind, and their cut by time into train, validation and test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.training.config import TrainingConfig

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingRows(ABC):
    """What a training run learns from. `ARRAYS`: the fields that are stored as arrays; the others are stored as JSON.

    step: seconds between rows
    data_sha256: of the content; source, synthetic: where it came from
    request: what the user asked for, as text; an interrupted training run is resumed for the same request only
    """

    KIND: ClassVar[str]
    ARRAYS: ClassVar[tuple[str, ...]]

    step: int
    data_sha256: str
    source: str
    synthetic: bool
    request: str = ""

    @property
    @abstractmethod
    def ticks(self) -> int:
        """The number of rows of one series."""

    @abstractmethod
    def interval(self, start: int, stop: int) -> tuple[int, int]:
        """Unix seconds at which row `start` opens and row `stop - 1` closes."""

    @property
    def count(self) -> int:
        """The number of rows of all series."""
        return self.ticks

    def to_metadata(self) -> dict[str, object]:
        """The fields that are not arrays, for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in self.ARRAYS}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], arrays: Mapping[str, Any]) -> Self:
        """The rows with this metadata, read from JSON, and these arrays.

        Raises:
            ValueError, KeyError, TypeError: the metadata was written by another version.
        """
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in metadata.items()
        }
        return cls(**values, **arrays)


@dataclass(frozen=True, eq=False)
class Part:
    """Rows `start .. stop - 1`, and the windows that are completely inside them, as indices `[N]`."""

    name: str
    start: int
    stop: int
    windows: Indices


PartT = TypeVar("PartT", bound=Part)


@dataclass(frozen=True, eq=False)
class Split(Generic[PartT]):
    """The three parts, in time order."""

    train: PartT
    validation: PartT
    test: PartT


def cut_rows(
    rows: int, first: int, config: TrainingConfig, describe: Callable[[int], str]
) -> list[tuple[str, int, int]]:
    """Name, start and stop of the parts of the rows from `first` on, with `horizon` unused rows between the parts.

    `config.validation` and `config.test` are shares of the rows, the rest is train.

    Raises:
        DataError: a part is shorter than a window; `describe` gives its message from the number of rows that suffice.
    """
    shares = 1 - config.validation - config.test, config.validation, config.test
    horizon, window = config.horizon, config.encoder_length + config.horizon
    sizes = [int((rows - first - 2 * horizon) * share) for share in shares]
    if min(sizes) < window:
        raise DataError(describe(int(np.ceil(window / min(shares))) + 2 * horizon + first + 1))
    train_end = first + sizes[0]
    validation_end = train_end + horizon + sizes[1]
    return [
        ("train", first, train_end),
        ("validation", train_end + horizon, validation_end),
        ("test", validation_end + horizon, rows),
    ]
