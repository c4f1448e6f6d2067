"""What children run: their set-up, and jobs, with how to turn a result message into a value.

A child imports this, so it imports no settings. A result that cannot be read, or is not what the job asked for, counts
against the child that sent it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from forecastd.supervise.detector import Phase
from forecastd.supervise.protocol import ChildMessage, printable


@dataclass(frozen=True)
class ChildSetup:
    """How children are started and what they run.

    `command`: the command line of the child's main, without its arguments. `runner`: the kind of work, which the child's
    main knows; `options`: what it loads. `name`: of the model. `faults`: injected into the first `faulty_launches` children,
    in the syntax of `faults.py`. `threads`: for the numeric libraries, 0 for their own default. `environment`: extra
    variables for the child.
    """

    command: tuple[str, ...]
    runner: str
    options: Mapping[str, object] = field(default_factory=dict)
    name: str = ""
    faults: str = ""
    faulty_launches: int = 1
    threads: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)

    def load_fields(self, launch_number: int) -> dict[str, object]:
        """The fields of the `load` message. `launch_number`: of the launch in the pool, from 1."""
        faults = self.faults if launch_number <= self.faulty_launches else ""
        return {"runner": self.runner, "faults": faults, **self.options}


@dataclass(frozen=True, eq=False)
class Job:
    """One piece of work for a child.

    `name`: shown to people. `deadline`: monotonic seconds after which the result is no longer needed. `attempts`: how many
    children may try it. `read`: turns the result message into the value; raises InvalidResult. `phase`: in which the work
    begins.
    """

    kind: Literal["run", "check"]
    name: str
    deadline: float
    attempts: int
    read: Callable[[ChildMessage], Any]
    fields: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    phase: Phase = Phase.PREDICTING


def check_job(deadline: float, attempts: int) -> Job:
    """Run the canary of the loaded model again. The job's value is the bundle's sha256."""
    return Job("check", "model check", deadline, attempts, lambda message: printable(message.text("bundle_sha256")))
