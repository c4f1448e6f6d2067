"""Jobs that run outside of the calling process, and the protocol of what runs the long ones.

A request holds plain values only, so that the process that runs it may be on this machine or on another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class ChildFailed(Exception):
    """The child died, hung or sent invalid messages, and so did its replacements. The message describes the last failure."""


class ModelFailed(Exception):
    """A healthy child reported an error. `kind`: data, bundle or model, or one of the job's own. `check`: the name of the
    failed check, or empty."""

    def __init__(self, message: str, kind: str, check: str = "") -> None:
        super().__init__(message)
        self.kind, self.check = kind, check


class InvalidResult(Exception):
    """A child's result is not what the job asked for."""


@dataclass(frozen=True)
class JobRequest:
    """A job without a deadline. `kind`: names its runner. `name`: of what it makes. `fields`: JSON values for the runner.

    `read`: turns the fields of the result into the job's value; raises InvalidResult.
    """

    kind: str
    name: str
    fields: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class JobListener:
    """Callbacks in the caller's thread. `on_progress` gets the details that the work reports, `on_replacement` a sentence on
    each replaced process.

    `stop_now`: polled after an interrupt; true kills the process without waiting for it.
    """

    on_progress: Callable[[Mapping[str, Any]], None]
    on_replacement: Callable[[str], None]
    stop_now: Callable[[], bool] = lambda: False


class JobRunner(Protocol):
    """Runs jobs that take long and may be continued by another process."""

    def run(self, request: JobRequest, listener: JobListener) -> Any:
        """Run the job to its end; return its value.

        Raises:
            ModelFailed: the job reported that it cannot be done.
            ChildFailed: every process that tried it hung or died.
            KeyboardInterrupt: the job was interrupted, and no process works on it.
        """
