"""The warning and critical thresholds of every metric, by profile, from a TOML file.

Invariant: a user's file contains only what differs. For a profile and a metric, the order is: the user's profile, the
user's `[default]`, the built-in profile, the built-in `[default]`.

    [default]
    cpu_percent = { warning = 80, critical = 95 }

    [profile.web]
    latency_ms = { warning = 200, critical = 600 }
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecastd.errors import NeedsHuman
from forecastd.fleet.contract import METRIC_INDEX, METRIC_NAMES, METRICS, PROFILE_PATTERN
from forecastd.runtime.files import read_text_file

BUILTIN_FILE = Path(__file__).with_name("thresholds.toml")
DEFAULT = ""  # the key of `[default]`; no profile has an empty name
_FORMAT = "{ warning = NUMBER, critical = NUMBER }"


@dataclass(frozen=True)
class MetricThresholds:
    """A metric needs attention at or above `warning` and is an incident at or above `critical`; in the metric's unit."""

    warning: float
    critical: float


ThresholdTable = Mapping[str, Mapping[str, MetricThresholds]]  # profile or DEFAULT -> metric -> thresholds


class Thresholds:
    """Thresholds for every metric of every profile. A profile without its own uses those of DEFAULT.

    `table`: has all metrics of each profile, and DEFAULT.
    """

    def __init__(self, table: ThresholdTable) -> None:
        self.table = table
        self._row_by_profile = {profile: row for row, profile in enumerate(table)}
        self._limits = np.array(  # [P, M, 2]
            [[astuple(thresholds[metric]) for metric in METRIC_NAMES] for thresholds in table.values()],
            dtype=np.float64,
        )

    def get(self, profile: str, metric: str) -> MetricThresholds:
        """The thresholds of a metric for servers of a profile, which may be unknown.

        Raises KeyError for an unknown metric.
        """
        return self.table.get(profile, self.table[DEFAULT])[metric]

    def arrays(self, profiles: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Warning and critical, each [S, M] in the contract's order, for servers with these profiles."""
        default = self._row_by_profile[DEFAULT]
        limits = self._limits[[self._row_by_profile.get(profile, default) for profile in profiles]]
        return limits[:, :, 0], limits[:, :, 1]


def load_thresholds(path: Path | None = None) -> Thresholds:
    """The built-in thresholds, overridden by those of a user's file.

    Raises:
        NeedsHuman: the file cannot be read or is invalid; the message has the file, the line, the cause and the fix.
    """
    tables = [read_thresholds_file(BUILTIN_FILE), *([] if path is None else [read_thresholds_file(path)])]
    merged: dict[str, dict[str, MetricThresholds]] = {}
    for profile in sorted({DEFAULT}.union(*tables)):
        merged[profile] = {}
        for table in tables:
            merged[profile] |= {**table.get(DEFAULT, {}), **table.get(profile, {})}
    return Thresholds(merged)


def read_thresholds_file(path: Path) -> ThresholdTable:
    """The thresholds in a file, without those of other files. Raises as `load_thresholds` does."""
    text = read_text_file(path, "The thresholds file", "Check FLEET_THRESHOLDS.")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise NeedsHuman(f"{path} is not valid TOML: {error}. Correct that line.") from None
    except RecursionError:
        raise NeedsHuman(f"{path} is nested too deeply. Use only the tables [default] and [profile.NAME].") from None
    return {
        profile: dict(_parse_metrics(path, text, profile, table))
        for profile, table in _parse_tables(path, text, document)
    }


def _parse_tables(path: Path, text: str, document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    fix = "Use only the tables [default] and [profile.NAME]."
    for key in document:
        if key not in {"default", "profile"}:
            raise NeedsHuman(f"{_location(path, text, '', key)}: unknown key {key!r}. {fix}")
    profiles = document.get("profile", {})
    if not isinstance(profiles, dict):
        raise NeedsHuman(f"{_location(path, text, '', 'profile')}: `profile` is not a table. {fix}")
    for name, table in [(DEFAULT, document.get("default", {})), *profiles.items()]:
        section = f"profile.{name}" if name else "default"
        if name and not PROFILE_PATTERN.fullmatch(name):
            fix = "Use up to 32 lower-case letters, digits, _ and -, as in the feed."
            raise NeedsHuman(f"{_location(path, text, section)}: invalid profile name {name!r}. {fix}")
        if not isinstance(table, dict):
            raise NeedsHuman(
                f"{_location(path, text, section)}: not a table. Write [{section}], then lines METRIC = {_FORMAT}."
            )
        yield name, table


def _parse_metrics(
    path: Path, text: str, profile: str, table: Mapping[str, Any]
) -> Iterator[tuple[str, MetricThresholds]]:
    section = f"profile.{profile}" if profile else "default"
    for metric, entry in table.items():
        try:
            yield metric, _parse_thresholds(metric, entry)
        except ValueError as error:
            raise NeedsHuman(f"{_location(path, text, section, metric)}, {metric}: {error}") from None


def _parse_thresholds(metric: str, entry: object) -> MetricThresholds:
    """The thresholds of one entry. Raises ValueError with cause and fix when it is invalid."""
    if metric not in METRIC_INDEX:
        raise ValueError(f"unknown metric. Use one of: {', '.join(METRIC_NAMES)}.")
    if not isinstance(entry, dict) or set(entry) != {"warning", "critical"}:
        raise ValueError(f"write it as {_FORMAT}, with both numbers and no other key.")
    for name, value in entry.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= sys.float_info.max:  # NaN, infinity, or hundreds of digits
            raise ValueError(f"{name} is {value!r}, which is not a number. Write a number such as 80 or 99.5.")
    warning, critical = float(entry["warning"]), float(entry["critical"])
    definition = METRICS[METRIC_INDEX[metric]]
    if warning >= critical:
        fix = "Lower warning or raise critical."
        raise ValueError(f"warning {warning:g} is not below critical {critical:g}. {fix}")
    if not definition.low < warning < critical <= definition.high:
        bounds = f"above {definition.low:g} and at most {definition.high:g} {definition.unit}".rstrip()
        raise ValueError(f"{warning:g} and {critical:g} are outside the range of the metric: {bounds}. Check the unit.")
    return MetricThresholds(warning, critical)


def _location(path: Path, text: str, section: str, key: str = "") -> str:
    """The file, and the line of this key where it can be found: the TOML parser reports lines for syntax errors only."""
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*([^\]]*?)\s*\]", line):
            current = re.sub(r"[\s\"']", "", header[1])
            if current == section and not key:
                return f"{path}, line {number}, [{section}]"
            if not section and current.partition(".")[0] == key:
                return f"{path}, line {number}"
        name = line.partition("=")[0].strip().strip("\"'")
        if "=" in line and key and name == key and current == section:
            return f"{path}, line {number}" + (f", [{section}]" if section else "")
    return f"{path}, [{section}]" if section else str(path)
