"""How children are treated: their limits, how often a job is tried, when a slot backs off and a bundle is given up."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from forecastd.settings import Settings
from forecastd.supervise.detector import Limits

BACK_OFF_AFTER, BACK_OFF_WITHIN = 3, 300.0
BACK_OFF_FIRST, BACK_OFF_MOST = 5.0, 300.0
STEADY = 10  # a forecast that gets on all the time may take that many times what one step of it may


@dataclass(frozen=True)
class Policy:
    """The rules. `memory` in bytes of address space, 0 without limit; `strikes`: after how many hangs, deaths and bad
    answers with no good one between a bundle is given up."""

    limits: Limits = field(default_factory=Limits)
    attempts: int = 3
    standbys: int = 0
    memory: int = 4 << 30
    strikes: int = 3

    @property
    def ready_seconds(self) -> float:
        """How long all attempts to have a model ready may take together."""
        limits = self.limits
        return self.attempts * (limits.starting + limits.loading + limits.warming_up)

    @property
    def forecast_seconds(self) -> float:
        """How long all attempts at a forecast that gets on all the time may take together."""
        limits = self.limits
        return self.attempts * (limits.loading + limits.predicting + limits.post_processing) * STEADY


@dataclass(frozen=True)
class Setup:
    """What children are made ready with. `bundle` None: they need no model (training). `faults` are those of the first
    `faulty` launches, in the writing of `faults.py`; `threads`: how many the numeric libraries may use, 0 for as many as
    they take by themselves; `environment`: what they are to find in their environment besides.

    `engine`: for a fleet's bundle the engine that runs it, with `engine_threads` of its own; empty for a market's bundle."""

    bundle: Path | None = None
    name: str = ""
    faults: str = ""
    faulty: int = 1
    threads: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    engine: str = ""
    engine_threads: int = 1

    def told(self, launch: int) -> dict[str, object]:
        """What the child of this launch, counted from 1, is told to load."""
        return {
            "bundle": str(self.bundle.resolve()) if self.bundle else "",
            "faults": self.faults if launch <= self.faulty else "",
            "engine": self.engine,
            "threads": self.engine_threads,
        }


@dataclass
class BackOff:
    """When a slot may start its next child: at once, until it was replaced too often."""

    not_before: float = 0.0
    _replaced: deque[float] = field(default_factory=lambda: deque(maxlen=BACK_OFF_AFTER))
    _seconds: float = BACK_OFF_FIRST

    def replaced(self, now: float) -> float:
        """Another child of the slot is gone; gives how many seconds the slot has to wait now.

        A wait is no proof of health: only a child that lasted that long after it has what was before forgotten.
        """
        if self._replaced and now - max(self._replaced[-1], self.not_before) > BACK_OFF_WITHIN:
            self._replaced.clear()
            self._seconds = BACK_OFF_FIRST
        self._replaced.append(now)
        often = len(self._replaced) == BACK_OFF_AFTER and now - self._replaced[0] <= BACK_OFF_WITHIN
        if not often and self._seconds == BACK_OFF_FIRST:
            return 0.0
        wait, self._seconds = self._seconds, min(2 * self._seconds, BACK_OFF_MOST)
        self.not_before = now + wait
        return wait


def policy_of(settings: Settings, *, standbys: int) -> Policy:
    """The rules that the settings ask for."""
    limits = Limits(
        starting=settings.starting_timeout,
        loading=settings.loading_timeout,
        warming_up=settings.warming_up_timeout,
        predicting=settings.predicting_timeout,
        training=settings.training_timeout,
        post_processing=settings.post_processing_timeout,
        stopping=settings.stopping_timeout,
        silence=settings.silence_timeout,
    )
    return Policy(limits, settings.job_attempts, standbys, settings.model_memory_mb << 20)
