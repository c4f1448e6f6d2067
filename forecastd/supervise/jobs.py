"""Jobs for children: what to send, and how to turn the result message into a value.

A result that cannot be read, or is not what the job asked for, counts against the child that sent it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from forecastd.supervise.detector import Phase
from forecastd.supervise.protocol import ChildMessage, printable


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
