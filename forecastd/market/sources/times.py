"""Convert the times in files to unix seconds.

A number is seconds, milliseconds, microseconds or nanoseconds since 1970; its size decides, value by value, because
vendors mix units in one file. A text is ISO 8601 or one of the formats below; without an offset it is UTC. If day and
month are ambiguous in one value, the whole column decides; a column that stays ambiguous is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

FORMATS = (
    "%m/%d/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%m/%d/%Y %I:%M:%S %p",
    "%m/%d/%Y %I:%M %p",
    "%m/%d/%Y",
    "%d/%m/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M",
    "%d/%m/%Y",
    "%d-%m-%Y %H:%M:%S",
    "%d-%m-%Y %H:%M",
    "%d.%m.%Y %H:%M:%S.%f GMT%z",
    "%d.%m.%Y %H:%M:%S.%f",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y-%m-%d %I:%M:%S %p",
    "%Y-%m-%d %I:%M %p",
    "%Y%m%d %H:%M:%S",
    "%Y%m%d %H%M%S",
    "%b %d, %Y %H:%M",
    "%b %d, %Y",
)
_HOUR_AND_HALF = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d)-([AP])M")  # 2019-10-17 09-AM
_YEAR_FIRST = re.compile(r"(\d{4})[./](\d\d?)[./](\d\d?)")
_UTC = re.compile(r"\s*(UTC|GMT)$")
_NUMBER = re.compile(r"\d{9,19}(\.\d*)?")


class TimeTextError(ValueError):
    """A text is not a time. `index` is its index in the column; `ambiguous`: it can be read as two different times."""

    def __init__(self, index: int, text: str, *, ambiguous: bool = False) -> None:
        super().__init__(text)
        self.index = index
        self.text = text
        self.ambiguous = ambiguous


def seconds_of_number(value: float) -> float:
    """Unix seconds of a number of s, ms, us or ns since 1970. The units do not overlap from 1973 to 5138."""
    for limit, unit in ((1e11, 1), (1e14, 10**3), (1e17, 10**6)):
        if value < limit:
            return value / unit
    return value / 10**9


def seconds_of_texts(texts: Sequence[str]) -> NDArray[np.int64]:
    """Convert a column of times to unix seconds, rounded down.

    Raises:
        TimeTextError: a value is not a time, or day and month are ambiguous in the whole column.
    """
    moments = np.empty(len(texts), dtype=np.int64)
    for index, text in enumerate(texts):
        moment = _parse_plain(text.strip())
        if moment is None:
            return _parse_by_format(texts, index)
        moments[index] = moment // 1
    return moments


def _parse_plain(text: str) -> float | None:
    """Parse a number, ISO 8601 or a close variant of it; None for anything else."""
    if len(text) in {12, 14} and text.startswith(("19", "20")) and text.isdigit():
        text = f"{text[:8]}T{text[8:]}"  # 201910170900; as a number of seconds it would be before any exchange existed
    elif _NUMBER.fullmatch(text):
        return seconds_of_number(float(text))
    match = _HOUR_AND_HALF.fullmatch(text)
    if match:
        hour = int(match[2]) % 12 + (12 if match[3] == "P" else 0)
        text = f"{match[1]} {hour:02d}:00"
    try:
        return _to_timestamp(datetime.fromisoformat(text))
    except ValueError:
        pass
    text = _UTC.sub("", text)
    date_match = _YEAR_FIRST.match(text)
    if date_match:
        text = f"{date_match[1]}-{int(date_match[2]):02d}-{int(date_match[3]):02d}{text[date_match.end() :]}"
    try:
        return _to_timestamp(datetime.fromisoformat(text))
    except ValueError:
        return None


def _parse_by_format(texts: Sequence[str], error_index: int) -> NDArray[np.int64]:
    """Parse the column in the one format of `FORMATS` that fits all values; those before `error_index` need none."""
    readings: list[NDArray[np.int64]] = []
    for time_format in FORMATS:
        moments = np.empty(len(texts), dtype=np.int64)
        for index, text in enumerate(texts):
            try:
                moments[index] = _to_timestamp(datetime.strptime(text.strip(), time_format)) // 1  # noqa: DTZ007 - _stamp adds UTC
            except ValueError:
                error_index = max(error_index, index)
                break
        else:
            readings.append(moments)
    if not readings:
        raise TimeTextError(error_index, texts[error_index])
    if any((other != readings[0]).any() for other in readings[1:]):
        raise TimeTextError(0, texts[0], ambiguous=True)
    return readings[0]


def _to_timestamp(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
