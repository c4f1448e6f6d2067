"""The records in the manifest of every bundle, of whichever kind: its training, its levels, its files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from models.bundle.fields import StrictFields, refuse

MARKET_KIND = "temporal-fusion-transformer"  # the field `kind` of a manifest
FLEET_KIND = "temporal-fusion-transformer-fleet"
WEIGHTS = "weights.safetensors"
CANARY = "canary.safetensors"
PART_NAMES = ("train", "validation", "test")
MAX_STEP_SECONDS = 366 * 86_400
MAX_SIZES = {  # the largest sizes that a manifest may have
    "encoder_length": 100_000, "horizon": 100_000, "hidden_size": 4096, "hidden_continuous_size": 4096,
    "attention_heads": 256, "lstm_layers": 16, "levels": 99,
}  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """One part of the rows: unix seconds at which its first row opens and its last row closes, and its number of windows."""

    start: int
    end: int
    windows: int


@dataclass(frozen=True)
class TrainingRecord:
    """How a model was trained. `start`, `end`: unix seconds at which the first row opens and the last row closes.

    They span all rows, with those of validation and test. The rows that the weights were fitted to end at
    `trained_until`.
    """

    start: int
    end: int
    rows: int
    data_sha256: str
    source: str
    synthetic: bool
    created: int  # unix seconds
    parts: Mapping[str, Interval]  # train, validation and test
    config: Mapping[str, object]  # options of the training

    @property
    def trained_until(self) -> int:
        """Unix seconds at which the last row of the train part closes: the newest that the weights were fitted to."""
        return self.parts["train"].end


@dataclass(frozen=True)
class FileRecord:
    """Hash and size of a file of the bundle."""

    sha256: str
    size: int


def iso(seconds: int) -> str:
    """Unix seconds as `2019-10-17T09:00:00Z`."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def training_json(training: TrainingRecord) -> dict[str, object]:
    """The record of a training run as JSON."""
    parts = {name: {**_times_json(part), **vars(part)} for name, part in training.parts.items()}
    return {**_times_json(training), **vars(training), "parts": parts}


def _times_json(part: Interval | TrainingRecord) -> dict[str, object]:
    return {"start": part.start, "start_iso": iso(part.start), "end": part.end, "end_iso": iso(part.end)}


def read_levels(root: StrictFields) -> tuple[float, ...]:
    """Read the levels of the quantiles."""
    levels = root.take("levels", list)
    if not all(isinstance(level, float) and 0 < level < 1 for level in levels) or len(levels) > MAX_SIZES["levels"]:
        refuse("must have probabilities between 0 and 1 at levels")
    if any(b <= a for a, b in itertools.pairwise(levels)) or 0.5 not in levels:
        refuse("must have increasing levels that include 0.5")
    return tuple(levels)


def read_training(training: StrictFields) -> TrainingRecord:
    """Read the record of a training run."""
    start, end = _times(training, "training")
    record = TrainingRecord(
        start=start,
        end=end,
        rows=training.integer("rows", 1, 2**40),
        data_sha256=training.sha256("data_sha256"),
        source=training.take("source", str),
        synthetic=training.take("synthetic", bool),
        created=training.integer("created", 0, 2**40),
        parts=_parts(training.child("parts"), start, end),
        config=training.mapping("config"),
    )
    training.expect_empty()
    return record


def _parts(parts: StrictFields, start: int, end: int) -> Mapping[str, Interval]:
    """Read the parts of the rows: in order of time, without overlap, between `start` and `end`."""
    intervals = {}
    for name in PART_NAMES:
        part = parts.child(name)
        intervals[name] = Interval(*_times(part, f"training.parts.{name}"), part.integer("windows", 1, 2**40))
        part.expect_empty()
        if not start <= intervals[name].start <= intervals[name].end <= end:
            refuse(f"has training parts that overlap, or lie outside the training interval, at training.parts.{name}")
        start = intervals[name].end
    parts.expect_empty()
    return intervals


def _times(interval: StrictFields, location: str) -> tuple[int, int]:
    start, end = interval.integer("start", 0, 2**40), interval.integer("end", 0, 2**40)
    try:
        times = iso(start), iso(end)
    except (ValueError, OverflowError, OSError):
        refuse(f"has a time that is out of range at {location}")
    if (interval.take("start_iso", str), interval.take("end_iso", str)) != times or start >= end:
        refuse(f"has contradictory interval times at {location}")
    return start, end


def read_files(files: StrictFields) -> Mapping[str, FileRecord]:
    """Read the records of a bundle's files."""
    if set(files.keys()) != {WEIGHTS, CANARY}:
        refuse(f"must describe exactly the files {WEIGHTS} and {CANARY}")
    records = {}
    for name in files.keys():  # noqa: SIM118  # not a dict: reading removes its fields
        record = files.child(name)
        records[name] = FileRecord(record.sha256("sha256"), record.integer("size", 1, 2**40))
        record.expect_empty()
    return records
