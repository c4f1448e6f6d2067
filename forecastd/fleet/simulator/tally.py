"""The counts of a simulation: the responses of the service compared with the expected results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forecastd.fleet.simulator.feeds import ACCEPTED, DUPLICATE

MAX_MISMATCHES = 20
OLD_CODE = "old"


@dataclass
class SimulationTally:
    """Counts of one simulation. `expected`: the rows sent, by expected result. `bad`: the bad rows, by kind."""

    feeds: int = 0
    rows: int = 0
    ticks: int = 0
    accepted: int = 0
    duplicates: int = 0
    before_window: int = 0
    retries: int = 0
    joined: int = 0
    left: int = 0
    seconds: float = 0.0
    max_lag_seconds: float = 0.0
    expected: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    mismatches: list[str] = field(default_factory=list)
    mismatched_feeds: int = 0

    @property
    def as_expected(self) -> bool:
        """Whether every row had its expected result."""
        return not self.mismatched_feeds

    def record(self, expected: Mapping[str, int], response: Mapping[str, Any], *, resent: bool, is_past: bool) -> None:
        """Record the response to a feed. `is_past`: its ticks are in the past and may have left the window by now.

        The rows of a feed that was sent twice (`resent`) may be duplicates, and so may rows of an earlier simulation.

        Raises:
            KeyError, TypeError, ValueError: the document is not a response to a feed.
        """
        accepted, duplicates, total = (int(response[name]) for name in ("accepted", "duplicates", "refused"))
        reasons = [dict(reason) for reason in response["reasons"]]
        counts = {str(code): int(count) for code, count in dict(response["counts"]).items()}
        codes = {str(reason["code"]) for reason in reasons} | (expected.keys() - {ACCEPTED, DUPLICATE})
        refused = Counter({code: counts[code] for code in codes if counts.get(code)})
        self.feeds += 1
        self.rows += sum(expected.values())
        self.accepted, self.duplicates = self.accepted + accepted, self.duplicates + duplicates
        self.expected.update(expected)
        self.refused.update(refused)
        good = expected.get(ACCEPTED, 0) + expected.get(DUPLICATE, 0)
        unaccounted, missed_duplicates = good - accepted - duplicates, expected.get(DUPLICATE, 0) - duplicates
        missing = +Counter(
            {code: expected[code] - refused[code] for code in expected if code not in {ACCEPTED, DUPLICATE, OLD_CODE}}
        )
        old = refused[OLD_CODE] - expected.get(OLD_CODE, 0)
        unclaimed = old - missing.total()
        if is_past and 0 <= unclaimed <= unaccounted:
            self.before_window += old
            refused += missing
            refused[OLD_CODE] -= old
            unaccounted, missed_duplicates = unaccounted - unclaimed, missed_duplicates - unclaimed
        mismatches = [
            f"{_rows(expected.get(code, 0))} should have been refused as {code}, {refused[code]} were"
            for code in sorted({*refused, *expected} - {ACCEPTED, DUPLICATE})
            if refused[code] != expected.get(code, 0)
        ]
        if missed_duplicates > 0 and not resent:
            mismatches.append(f"{_rows(expected[DUPLICATE])} were sent twice, {duplicates} were counted as duplicates")
        if unaccounted:
            mismatches.append(f"{_rows(good)} were valid, {accepted + duplicates} were accepted")
        if sum(expected.values()) != accepted + duplicates + total:
            sent, answered = _rows(sum(expected.values())), accepted + duplicates + total
            mismatches.append(f"{sent} were sent, the response counts {answered}")
        unexpected = [str(reason["reason"]) for reason in reasons if str(reason["code"]) not in expected]
        self._add_mismatches([*mismatches, *unexpected[:1]] if mismatches else [])

    def _add_mismatches(self, mismatches: list[str]) -> None:
        self.mismatched_feeds += bool(mismatches)
        new = [mismatch for mismatch in mismatches if mismatch not in self.mismatches]
        self.mismatches += new[: MAX_MISMATCHES - len(self.mismatches)]

    def as_json(self) -> dict[str, Any]:
        """The counts as a JSON document."""
        return {
            "as_expected": self.as_expected,
            "seconds": round(self.seconds, 3),
            "ticks": self.ticks,
            "feeds": self.feeds,
            "rows": self.rows,
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "refused": dict(sorted(self.refused.items())),
            "expected": {ACCEPTED: 0, DUPLICATE: 0} | dict(sorted(self.expected.items())),
            "before_window": self.before_window,
            "bad": dict(sorted(self.bad.items())),
            "retries": self.retries,
            "joined": self.joined,
            "left": self.left,
            "max_lag_seconds": round(self.max_lag_seconds, 3),
            "mismatches": list(self.mismatches),
        }


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"
