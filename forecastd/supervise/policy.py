"""The rules of supervision: phase limits, attempts for a job, back-off of a slot, quarantine of a bundle."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from forecastd.runtime.retry import backoff_seconds
from forecastd.settings import Settings
from forecastd.supervise.detector import PhaseLimits

BACKOFF_AFTER_REPLACEMENTS, BACKOFF_WINDOW_SECONDS = 3, 300.0
MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 5.0, 300.0
TOTAL_TIME_FACTOR = 10  # a forecast with steady progress may take that many times the limit of one step


@dataclass(frozen=True)
class SupervisionPolicy:
    """The rules of one pool. `memory`: bytes of address space for a child, 0 for no limit. `quarantine_after`: the number of
    consecutive hangs, deaths and invalid results after which the bundle is quarantined."""

    limits: PhaseLimits = field(default_factory=PhaseLimits)
    attempts: int = 3
    standbys: int = 0
    memory: int = 4 << 30
    quarantine_after: int = 3

    @property
    def ready_seconds(self) -> float:
        """Seconds that all attempts to get a model ready may take together."""
        limits = self.limits
        return self.attempts * (limits.starting + limits.loading + limits.warming_up)

    @property
    def forecast_seconds(self) -> float:
        """Seconds that all attempts at a forecast with steady progress may take together."""
        limits = self.limits
        return self.attempts * (limits.loading + limits.predicting + limits.post_processing) * TOTAL_TIME_FACTOR


@dataclass
class SlotBackoff:
    """When a slot may start its next child: at once, unless its children were replaced too often."""

    not_before: float = 0.0
    _replacements: deque[float] = field(default_factory=lambda: deque(maxlen=BACKOFF_AFTER_REPLACEMENTS))
    _waits: int = 0  # since the history was cleared

    def record_replacement(self, now: float) -> float:
        """Count the loss of the slot's child; return the seconds to wait before the next start.

        Time spent waiting does not count as health: the history is cleared only by a child that lived for the whole window
        after the wait.
        """
        if self._replacements and now - max(self._replacements[-1], self.not_before) > BACKOFF_WINDOW_SECONDS:
            self._replacements.clear()
            self._waits = 0
        self._replacements.append(now)
        is_frequent = (
            len(self._replacements) == BACKOFF_AFTER_REPLACEMENTS
            and now - self._replacements[0] <= BACKOFF_WINDOW_SECONDS
        )
        if not is_frequent and not self._waits:
            return 0.0
        self._waits += 1
        wait = backoff_seconds(self._waits, MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, jitter=0)
        self.not_before = now + wait
        return wait


def policy_from_settings(settings: Settings, *, standbys: int) -> SupervisionPolicy:
    """The policy of these settings."""
    supervision = settings.supervision
    limits = PhaseLimits(
        starting=supervision.starting_timeout,
        loading=supervision.loading_timeout,
        warming_up=supervision.warming_up_timeout,
        predicting=supervision.predicting_timeout,
        training=supervision.training_timeout,
        post_processing=supervision.post_processing_timeout,
        stopping=supervision.stopping_timeout,
        heartbeat=supervision.child_heartbeat_timeout,
    )
    return SupervisionPolicy(limits, supervision.job_attempts, standbys, supervision.model_memory_mb << 20)
