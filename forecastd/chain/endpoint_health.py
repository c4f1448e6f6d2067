"""The health of an endpoint: pure values and transitions. Times are monotonic seconds.

Invariant: nothing here may exclude an endpoint for good. Every rest ends with a probe that decides, and the highest
known height expires when its endpoint stops answering.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

MIN_REST_SECONDS = 1.0  # after the first failure; each failed probe doubles it
MAX_REST_SECONDS = 30.0
WRONG_CHAIN_REST_SECONDS = 300.0
PROBE_TIMEOUT_SECONDS = 30.0  # a probe that takes longer counts as lost
HEIGHT_MAX_AGE_SECONDS = 30.0  # how long a height and a chain id count as known
MAX_LAG = 10  # blocks
_LEADER_MAX_AGE_SECONDS = 600.0  # seconds
_SIMULTANEOUS_SECONDS = 2.0  # two readings closer than this count as simultaneous; shorter than a block
_LATENCY_WEIGHT = 0.3  # weight of the latest latency in the smoothed one
_LATENCY_STEP_SECONDS = 0.05  # endpoints whose latencies differ less count as equally fast


class EndpointState(StrEnum):
    """How usable an endpoint is at present."""

    UNTRIED = "untried"
    OK = "ok"
    PROBING = "probing"
    QUARANTINED = "quarantined"
    WRONG_CHAIN = "wrong chain"
    BEHIND = "behind"


@dataclass(frozen=True)
class EndpointHealth:
    """The health of one endpoint. `latency` in seconds, smoothed.

    `height` was requested at `height_requested_at` and received at `height_received_at`. `rest_until` is set while the
    endpoint should not be called: after a failure, or while it is on another chain.
    """

    streak: int = 0
    latency: float | None = None
    height: int | None = None
    height_requested_at: float = 0.0
    height_received_at: float = 0.0
    rest_until: float | None = None
    rest_seconds: float = 0.0
    is_probing: bool = False
    wrong_chain: str | None = None
    error: str = ""

    def record_success(self, latency: float) -> EndpointHealth:
        """The endpoint answered: earlier failures are cleared."""
        smooth = latency if self.latency is None else self.latency + _LATENCY_WEIGHT * (latency - self.latency)
        return EndpointHealth(
            latency=smooth,
            height=self.height,
            height_requested_at=self.height_requested_at,
            height_received_at=self.height_received_at,
        )

    def record_height(self, height: int, height_requested_at: float, height_received_at: float) -> EndpointHealth:
        """The endpoint reported its height."""
        return replace(
            self, height=height, height_requested_at=height_requested_at, height_received_at=height_received_at
        )

    def record_failure(self, reason: str, now: float) -> EndpointHealth:
        """The endpoint gave no usable answer. It rests, twice as long after each failed probe.

        Failures during a rest do not extend it. They come from calls in progress, or from calls made for lack of a
        better endpoint.
        """
        failed = replace(self, streak=self.streak + 1, error=reason)
        if self.wrong_chain is not None:
            return replace(failed, rest_until=now + WRONG_CHAIN_REST_SECONDS, is_probing=False)
        if self.is_resting(now) and not self.is_probing:
            return failed
        rest_seconds = min(MAX_REST_SECONDS, max(MIN_REST_SECONDS, self.rest_seconds * 2))
        return replace(failed, rest_until=now + rest_seconds, rest_seconds=rest_seconds, is_probing=False)

    def record_wrong_chain(self, chain_id: str, now: float) -> EndpointHealth:
        """The endpoint is on another chain. It rests until one of its rare probes finds it on the right chain."""
        return replace(self, wrong_chain=chain_id, height=None).record_failure(f"on chain {chain_id}", now)

    def start_probe(self, now: float) -> EndpointHealth:
        """A probe starts. No other probe starts until it returns or counts as lost."""
        if self.rest_until is None:
            return replace(self, is_probing=True)
        return replace(self, is_probing=True, rest_until=now + PROBE_TIMEOUT_SECONDS)

    def is_resting(self, now: float) -> bool:
        """Whether the rest has not ended yet."""
        return self.rest_until is not None and now < self.rest_until

    def needs_probe(self, now: float) -> bool:
        """Whether the rest is over, or the known height is out of date."""
        if self.rest_until is not None:
            return now >= self.rest_until
        return self.height is None or now - self.height_received_at > HEIGHT_MAX_AGE_SECONDS

    @property
    def is_available(self) -> bool:
        """Whether the endpoint is neither resting nor on a wrong chain."""
        return self.rest_until is None and self.wrong_chain is None

    @property
    def rank(self) -> int:
        """Lower is better. The steps double, so that jitter of the latency does not switch reads between endpoints."""
        latency = self.latency if self.latency is not None else 0.0
        return max(0, int(latency / _LATENCY_STEP_SECONDS)).bit_length()

    def lag(self, others: Iterable[EndpointHealth]) -> int:
        """Blocks behind the highest of `others`, using only heights that were known when this endpoint was queried."""
        if self.height is None:
            return 0
        heights = [
            other.height
            for other in others
            if other.height is not None
            and other.wrong_chain is None
            and other.height_received_at <= self.height_requested_at + _SIMULTANEOUS_SECONDS
            and other.height_received_at > self.height_requested_at - _LEADER_MAX_AGE_SECONDS
        ]
        return max(0, max(heights, default=self.height) - self.height)

    def is_behind(self, others: Iterable[EndpointHealth], max_lag: int = MAX_LAG) -> bool:
        """Whether it lags by more than `max_lag` blocks."""
        return self.lag(others) > max_lag

    def state(self, others: Iterable[EndpointHealth], max_lag: int = MAX_LAG) -> EndpointState:
        """The overall state."""
        if self.wrong_chain is not None:
            return EndpointState.WRONG_CHAIN
        if self.rest_until is not None:
            return EndpointState.PROBING if self.is_probing else EndpointState.QUARANTINED
        if self.latency is None:
            return EndpointState.UNTRIED
        return EndpointState.BEHIND if self.is_behind(others, max_lag) else EndpointState.OK
