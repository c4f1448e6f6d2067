"""Jobs for children: what to send, and how to turn the result message into a value.

A result that cannot be read, or is not what the job asked for, counts against the child that sent it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from forecastd.supervise.protocol import ChildMessage


class InvalidResult(Exception):
    """A child's result is not what the job asked for."""


@dataclass(frozen=True, eq=False)
class Job:
    """One piece of work for a child.

    `name`: shown to people. `deadline`: monotonic seconds after which the result is no longer needed. `attempts`: how many
    children may try it. `read`: turns the result message into the value; raises InvalidResult.
    """

    kind: Literal["predict", "fleet", "check", "train"]
    name: str
    deadline: float
    attempts: int
    read: Callable[[ChildMessage], Any]
    fields: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
