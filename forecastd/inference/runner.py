"""What a supervised child runs: one runner for each kind of model or work, and the command line that starts the child."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from forecastd.supervise.detector import Phase
from forecastd.supervise.jobs import ChildSetup
from forecastd.supervise.protocol import ChildMessage

# The kinds that a set-up may name. A child imports only the module of its own kind.
RUNNERS = {
    "market": "forecastd.inference.market_runner:MarketRunner",
    "fleet": "forecastd.inference.fleet_runner:FleetRunner",
    "training": "forecastd.inference.training_runner:TrainingRunner",
}

StepReport = Callable[[int, int], None]  # done, total


class ProgressReport(Protocol):
    """Reports how far the work is; `detail`: what its observer should know. Called by the work itself, never by a timer."""

    def __call__(self, phase: Phase, done: float, total: float, detail: Mapping[str, Any] | None = None) -> None: ...


@dataclass(frozen=True, eq=False)
class RunnerResult:
    """The fields and the arrays of a result message."""

    fields: dict[str, Any]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)


@runtime_checkable
class Runner(Protocol):
    """One kind of work in the child. Its methods are called in the child's main thread.

    A ModelFailed that a method raises ends the job. Another child tries it after a MemoryError or a BundleError.
    `report_seconds`: the shortest time between two reports of a phase, for work with very short steps.
    """

    report_seconds: float = 0.0

    def load(self, options: ChildMessage, report: ProgressReport) -> str:
        """Load what the set-up's options name; return the bundle's sha256, empty without one."""
        return ""

    def check(self, report: StepReport) -> None:
        """Prove that the loaded model works. Raises BundleError."""
        return

    @abstractmethod
    def run(self, job: ChildMessage, report: ProgressReport) -> RunnerResult:
        """Do one job."""

    def prepare_next(self) -> None:
        """Work ahead for the next job, after the result was sent."""
        return


def open_runner(kind: str) -> Runner:
    """A new runner of this kind. Raises KeyError for an unknown one."""
    module, name = RUNNERS[kind].split(":")
    runner: Runner = getattr(import_module(module), name)()
    return runner


def child_setup(runner: str, **fields: Any) -> ChildSetup:
    """A set-up of children of this program. `-P` keeps the working directory out of a child's import path."""
    return ChildSetup((sys.executable, "-P", "-m", "forecastd.inference.child"), runner, **fields)
