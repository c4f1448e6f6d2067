"""What is known of an endpoint, and whether to ask it. Pure: values and transitions, times are monotonic seconds.

The one thing to know before changing it: nothing here may shut an endpoint out for good. Every rest has an end, after which
one probe decides, and a height that everyone else is measured against is forgotten when its endpoint is not heard from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

FIRST_REST = 1.0  # seconds after the first failure; each failed probe doubles it
LONGEST_REST = 30.0
WRONG_CHAIN_REST = 300.0
PROBE_LOST = 30.0  # a probe that has not come back by then is taken as lost
FRESH = 30.0  # seconds for which a height and a chain id count as known
MAX_LAG = 10  # blocks
_LEADER_FORGOTTEN = 600.0  # seconds
_SAME_TIME = 2.0  # seconds between two readings that are compared as if made together: less than a block
_WEIGHT = 0.3  # of the latest latency in the smoothed one
_EQUAL = 0.05  # seconds of latency below which endpoints count as equally fast


class Standing(StrEnum):
    """What an endpoint is good for at present."""

    UNTRIED = "untried"
    OK = "ok"
    PROBING = "probing"
    QUARANTINED = "quarantined"
    WRONG_CHAIN = "wrong chain"
    BEHIND = "behind"


@dataclass(frozen=True)
class Health:
    """One endpoint. `latency` in seconds, smoothed; `height` was asked for at `asked` and told at `told`.

    `rests_until` is set while it is not to be asked: after a failure, or while it is on another chain.
    """

    streak: int = 0
    latency: float | None = None
    height: int | None = None
    asked: float = 0.0
    told: float = 0.0
    rests_until: float | None = None
    rest: float = 0.0
    probing: bool = False
    wrong_chain: str | None = None
    error: str = ""

    def ok(self, latency: float) -> Health:
        """It answered: whatever stood against it is over."""
        smooth = latency if self.latency is None else self.latency + _WEIGHT * (latency - self.latency)
        return replace(
            self, streak=0, latency=smooth, rests_until=None, rest=0.0, probing=False, wrong_chain=None, error=""
        )

    def at(self, height: int, asked: float, told: float) -> Health:
        """It told its height."""
        return replace(self, height=height, asked=asked, told=told)

    def failed(self, reason: str, now: float) -> Health:
        """It gave no usable answer: it rests, twice as long after each failed probe.

        Failures that arrive while it rests (calls under way, or made because nobody better was left) do not prolong it.
        """
        seen = replace(self, streak=self.streak + 1, error=reason)
        if self.wrong_chain is not None:
            return replace(seen, rests_until=now + WRONG_CHAIN_REST, probing=False)
        if self.resting(now) and not self.probing:
            return seen
        rest = min(LONGEST_REST, max(FIRST_REST, self.rest * 2))
        return replace(seen, rests_until=now + rest, rest=rest, probing=False)

    def on_chain(self, found: str, now: float) -> Health:
        """It is on another chain: it is not asked until a rare probe finds it on the right one."""
        return replace(
            self,
            streak=self.streak + 1,
            wrong_chain=found,
            error=f"on chain {found}",
            height=None,
            rests_until=now + WRONG_CHAIN_REST,
            probing=False,
        )

    def probe(self, now: float) -> Health:
        """One probe goes out. Until it comes back or is lost, there is no other."""
        if self.rests_until is None:
            return replace(self, probing=True)
        return replace(self, probing=True, rests_until=now + PROBE_LOST)

    def resting(self, now: float) -> bool:
        """Whether its rest has not ended yet."""
        return self.rests_until is not None and now < self.rests_until

    def wants_probe(self, now: float) -> bool:
        """Whether its rest is over, or what is known of its height has grown old."""
        if self.rests_until is not None:
            return now >= self.rests_until
        return self.height is None or now - self.told > FRESH

    @property
    def closed(self) -> bool:
        """Whether nothing stands against asking it. (An electric circuit is closed when current flows.)"""
        return self.rests_until is None and self.wrong_chain is None

    @property
    def rank(self) -> int:
        """Lower is better. Doubling steps, so that a jitter of the latency does not move the reads to and fro."""
        latency = self.latency if self.latency is not None else 0.0
        return max(0, int(latency / _EQUAL)).bit_length()

    def lag(self, others: Iterable[Health]) -> int:
        """Blocks behind the highest of `others`, as far as that was known when this one was asked for its height."""
        if self.height is None:
            return 0
        heights = [
            other.height
            for other in others
            if other.height is not None
            and other.wrong_chain is None
            and other.told <= self.asked + _SAME_TIME
            and other.told > self.asked - _LEADER_FORGOTTEN
        ]
        return max(0, max(heights, default=self.height) - self.height)

    def behind(self, others: Iterable[Health], most: int = MAX_LAG) -> bool:
        """Whether it lags by more than `most` blocks."""
        return self.lag(others) > most

    def standing(self, others: Iterable[Health], most: int = MAX_LAG) -> Standing:
        """All of it in a word."""
        if self.wrong_chain is not None:
            return Standing.WRONG_CHAIN
        if self.rests_until is not None:
            return Standing.PROBING if self.probing else Standing.QUARANTINED
        if self.latency is None:
            return Standing.UNTRIED
        return Standing.BEHIND if self.behind(others, most) else Standing.OK
