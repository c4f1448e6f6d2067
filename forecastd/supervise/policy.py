"""How children are treated: their limits, how often a job is tried, when a slot backs off and a bundle is given up."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from forecastd.settings import Settings
from forecastd.supervise.detector import PhaseLimits

BACKOFF_AFTER_REPLACEMENTS, BACKOFF_WINDOW_SECONDS = 3, 300.0
MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 5.0, 300.0
TOTAL_TIME_FACTOR = 10  # a forecast that gets on all the time may take that many times what one step of it may


@dataclass(frozen=True)
class SupervisionPolicy:
    """The rules. `memory` in bytes of address space, 0 without limit; `strikes`: after how many hangs, deaths and bad
    answers with no good one between a bundle is given up."""

    limits: PhaseLimits = field(default_factory=PhaseLimits)
    attempts: int = 3
    standbys: int = 0
    memory: int = 4 << 30
    quarantine_after: int = 3

    @property
    def ready_seconds(self) -> float:
        """How long all attempts to have a model ready may take together."""
        limits = self.limits
        return self.attempts * (limits.starting + limits.loading + limits.warming_up)

    @property
    def forecast_seconds(self) -> float:
        """How long all attempts at a forecast that gets on all the time may take together."""
        limits = self.limits
        return self.attempts * (limits.loading + limits.predicting + limits.post_processing) * TOTAL_TIME_FACTOR


@dataclass(frozen=True)
class ChildSetup:
    """What children are made ready with. `bundle` None: they need no model (training). `faults` are those of the first
    `faulty` launches, in the writing of `faults.py`; `threads`: how many the numeric libraries may use, 0 for as many as
    they take by themselves; `environment`: what they are to find in their environment besides.

    `engine`: for a fleet's bundle the engine that runs it, with `engine_threads` of its own; empty for a market's bundle."""

    bundle: Path | None = None
    name: str = ""
    faults: str = ""
    faulty_launches: int = 1
    threads: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    engine: str = ""
    engine_threads: int = 1

    def load_fields(self, launch: int) -> dict[str, object]:
        """What the child of this launch, counted from 1, is told to load."""
        return {
            "bundle": str(self.bundle.resolve()) if self.bundle else "",
            "faults": self.faults if launch <= self.faulty_launches else "",
            "engine": self.engine,
            "threads": self.engine_threads,
        }


@dataclass
class SlotBackoff:
    """When a slot may start its next child: at once, until it was replaced too often."""

    not_before: float = 0.0
    _replacements: deque[float] = field(default_factory=lambda: deque(maxlen=BACKOFF_AFTER_REPLACEMENTS))
    _next_wait: float = MIN_BACKOFF_SECONDS

    def record_replacement(self, now: float) -> float:
        """Another child of the slot is gone; gives how many seconds the slot has to wait now.

        A wait is no proof of health: only a child that lasted that long after it has what was before forgotten.
        """
        if self._replacements and now - max(self._replacements[-1], self.not_before) > BACKOFF_WINDOW_SECONDS:
            self._replacements.clear()
            self._next_wait = MIN_BACKOFF_SECONDS
        self._replacements.append(now)
        is_frequent = (
            len(self._replacements) == BACKOFF_AFTER_REPLACEMENTS
            and now - self._replacements[0] <= BACKOFF_WINDOW_SECONDS
        )
        if not is_frequent and self._next_wait == MIN_BACKOFF_SECONDS:
            return 0.0
        wait, self._next_wait = self._next_wait, min(2 * self._next_wait, MAX_BACKOFF_SECONDS)
        self.not_before = now + wait
        return wait


def policy_from_settings(settings: Settings, *, standbys: int) -> SupervisionPolicy:
    """The rules that the settings ask for."""
    limits = PhaseLimits(
        starting=settings.starting_timeout,
        loading=settings.loading_timeout,
        warming_up=settings.warming_up_timeout,
        predicting=settings.predicting_timeout,
        training=settings.training_timeout,
        post_processing=settings.post_processing_timeout,
        stopping=settings.stopping_timeout,
        silence=settings.child_heartbeat_timeout,
    )
    return SupervisionPolicy(limits, settings.job_attempts, standbys, settings.model_memory_mb << 20)
