"""What a simulation has sent and what came of it: the service's answers held against what was known when it was sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forecastd.fleet.simulator.feeds import DUPLICATE, TAKEN

MOST_SURPRISES = 20
OLD = "old"


@dataclass
class Tally:
    """Counts of one simulation. `due`: what the rows sent should have come to, by code. `bad`: bad rows by what they were."""

    feeds: int = 0
    rows: int = 0
    ticks: int = 0
    taken: int = 0
    duplicates: int = 0
    before_window: int = 0
    tries: int = 0
    joined: int = 0
    left: int = 0
    seconds: float = 0.0
    behind: float = 0.0
    due: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    surprised: int = 0

    @property
    def as_expected(self) -> bool:
        """Whether every row came to what it should have."""
        return not self.surprised

    def note(self, due: Mapping[str, int], answer: Mapping[str, Any], *, sent_again: bool, past: bool) -> None:
        """Take in the answer to a feed. `past`: it brings ticks of the past, which may be before the window by now.

        A feed that was sent again may find its rows there already. So may a fleet that was fed the same before.

        Raises:
            KeyError, TypeError, ValueError: it is no answer to a feed.
        """
        taken, duplicates, total = (int(answer[name]) for name in ("accepted", "duplicates", "refused"))
        reasons = [dict(one) for one in answer["reasons"]]
        counts = {str(code): int(count) for code, count in dict(answer["counts"]).items()}
        codes = {str(one["code"]) for one in reasons} | {code for code in due if code not in {TAKEN, DUPLICATE}}
        refused = Counter({code: counts[code] for code in codes if counts.get(code)})
        self.feeds += 1
        self.rows += sum(due.values())
        self.taken, self.duplicates = self.taken + taken, self.duplicates + duplicates
        self.due.update(due)
        self.refused.update(refused)
        good = due.get(TAKEN, 0) + due.get(DUPLICATE, 0)
        lost, again = good - taken - duplicates, due.get(DUPLICATE, 0) - duplicates
        missing = +Counter({code: due[code] - refused[code] for code in due if code not in {TAKEN, DUPLICATE, OLD}})
        old = refused[OLD] - due.get(OLD, 0)
        late = old - missing.total()
        if past and 0 <= late <= lost:
            self.before_window += old
            refused += missing
            refused[OLD] -= old
            lost, again = lost - late, again - late
        wrong = [
            f"{due.get(code, 0)} rows were to be refused as {code}, {refused[code]} were"
            for code in sorted({*refused, *due} - {TAKEN, DUPLICATE})
            if refused[code] != due.get(code, 0)
        ]
        if again > 0 and not sent_again:
            wrong.append(f"{due[DUPLICATE]} rows were sent twice, {duplicates} were seen to be")
        if lost:
            wrong.append(f"{good} rows were good, {taken + duplicates} were taken")
        if sum(due.values()) != taken + duplicates + total:
            wrong.append(f"{sum(due.values())} rows were sent, the answer speaks of {taken + duplicates + total}")
        unforeseen = [str(one["reason"]) for one in reasons if str(one["code"]) not in due]
        self._be_surprised([*wrong, *unforeseen[:1]] if wrong else [])

    def _be_surprised(self, wrong: list[str]) -> None:
        self.surprised += bool(wrong)
        self.surprises += [told for told in wrong if told not in self.surprises][: MOST_SURPRISES - len(self.surprises)]

    def as_json(self) -> dict[str, Any]:
        """For a machine."""
        return {
            "as_expected": self.as_expected,
            "seconds": round(self.seconds, 3),
            "ticks": self.ticks,
            "feeds": self.feeds,
            "rows": self.rows,
            "accepted": self.taken,
            "duplicates": self.duplicates,
            "refused": dict(sorted(self.refused.items())),
            "expected": {TAKEN: 0, DUPLICATE: 0} | dict(sorted(self.due.items())),
            "before_window": self.before_window,
            "bad": dict(sorted(self.bad.items())),
            "tries_again": self.tries,
            "joined": self.joined,
            "left": self.left,
            "most_behind_seconds": round(self.behind, 3),
            "surprises": list(self.surprises),
        }
