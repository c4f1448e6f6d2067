"""Fault injection: a child that is asked to can hang, crash or misbehave at a given point of its real work.

Used by `forecastd supervise --fault` and by tests. A fault is written `KIND[:VALUE][@PLACE]`. PLACE is a percentage of the
job's work (a prediction or a training run) or the name of a phase. `hang@99` stops for ever at 99 % of a job;
`slow:0.5@post_processing` adds half a second to each step of that phase.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecastd.supervise.child_channel import ChildChannel
from forecastd.supervise.detector import Phase
from forecastd.supervise.protocol import ChildMessage, encode

_LEAK_BYTES = 16 << 20
_PRINTED_LINE = "a model that prints\n" * 51 + "\n"  # about 1 KiB
_REPORT_SECONDS = 0.05  # between two reports of false progress


@dataclass(frozen=True)
class ChildFaultKind:
    """What a kind of fault does; whether it takes a place; its default value, None when it takes none."""

    effect: str
    has_place: bool = False
    default: float | None = None


FAULT_KINDS = {
    "hang": ChildFaultKind("stop making progress, but keep sending heartbeats", has_place=True),
    "silent": ChildFaultKind("stop in native code that holds the GIL: no heartbeats either", has_place=True),
    "oscillate": ChildFaultKind("move one percent forward and back, for ever", has_place=True),
    "stale": ChildFaultKind("report progress for another launch, and none for this one", has_place=True),
    "crash": ChildFaultKind("crash with a segmentation fault", has_place=True),
    "exit": ChildFaultKind("call os._exit(VALUE, 3 by default)", has_place=True, default=3.0),
    "torn": ChildFaultKind("be killed in the middle of sending a message", has_place=True),
    "leak": ChildFaultKind("allocate memory until there is no more", has_place=True),
    "garbage": ChildFaultKind("send bytes that are not a message", has_place=True),
    "raise": ChildFaultKind("raise an unexpected ImportError", has_place=True),
    "slow": ChildFaultKind(
        "add VALUE seconds (1 by default) to each step; healthy below the limit", has_place=True, default=1.0
    ),
    "deaf": ChildFaultKind("never read its channel once the model is loaded"),
    "fork": ChildFaultKind("start a process of its own and leave it running"),
    "print": ChildFaultKind("print VALUE KiB (64 by default) to stdout", default=64.0),
    "shape": ChildFaultKind("return a result with one row too few"),
    "nan": ChildFaultKind("return NaN after VALUE valid results (0 by default)", default=0.0),
    "ignore-term": ChildFaultKind("ignore SIGTERM"),
}
_PHASE_NAMES = tuple(phase.value for phase in Phase if phase not in {Phase.STARTING, Phase.IDLE, Phase.TRAINING})


@dataclass(frozen=True)
class ChildFault:
    """One fault and its value; it acts from `percent` of `phase` on. `phase` None: in every phase."""

    kind: str
    value: float
    phase: Phase | None
    percent: float


def parse_faults(text: str) -> tuple[ChildFault, ...]:
    """Parse a comma-separated list of faults.

    Raises:
        ValueError: names what is wrong and the valid choices.
    """
    return tuple(_parse_fault(part.strip()) for part in text.split(",") if part.strip())


def _parse_fault(text: str) -> ChildFault:
    head, _, place = text.partition("@")
    name, _, value = head.partition(":")
    if (kind := FAULT_KINDS.get(name)) is None:
        raise ValueError(f"unknown fault {name!r}; choose from {', '.join(FAULT_KINDS)}")
    if value and kind.default is None:
        raise ValueError(f"{name} takes no value; remove {value!r}")
    if place and not kind.has_place:
        raise ValueError(f"{name} takes no place; remove {place!r}")
    phase: Phase | None = Phase.PREDICTING
    percent = 50.0
    if place in _PHASE_NAMES:
        phase, percent = Phase(place), 0.0
    elif place:
        percent = _parse_number(place, f"a percentage or one of {', '.join(_PHASE_NAMES)}", 100)
    elif name == "slow":
        phase = None
    return ChildFault(name, _parse_number(value, "a number", 1e6) if value else kind.default or 0.0, phase, percent)


def _parse_number(text: str, expected: str, maximum: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= maximum:
        raise ValueError(f"{text!r} must be {expected}, from 0 to {maximum:g}")
    return number


class FaultInjector:
    """Makes this child misbehave as its faults say. Without faults it does nothing."""

    def __init__(self, faults: Sequence[ChildFault], channel: ChildChannel) -> None:
        self._faults, self._channel, self._result_count = faults, channel, 0
        self._never = Event()
        for fault in faults:
            if fault.kind == "ignore-term":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            elif fault.kind == "fork" and os.fork() == 0:
                while True:
                    signal.pause()
            elif fault.kind == "print":
                print(_PRINTED_LINE * int(fault.value), flush=True)  # noqa: T201 - the fault is to print

    def on_progress(self, job: str | None, phase: Phase, done: float, total: float) -> None:
        """Trigger the faults that are due before the work reports this progress."""
        phases = {None, Phase.PREDICTING if phase is Phase.TRAINING else phase}
        for fault in self._faults:
            if fault.phase not in phases:
                continue
            if fault.kind == "slow":
                if done > 0:  # a phase that begins has made no step yet
                    self._never.wait(fault.value)
            elif FAULT_KINDS[fault.kind].has_place and 100 * done >= fault.percent * total:
                self._channel.report_progress(job, phase, total * fault.percent / 100, total)
                self._trigger(fault, job, phase, total)

    def on_read(self) -> None:
        """Called before the child reads its channel."""
        if any(fault.kind == "deaf" for fault in self._faults):
            self._never.wait()

    def on_result(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Falsify the quantiles of a valid result, if a fault says so."""
        self._result_count += 1
        for fault in self._faults:
            if fault.kind == "shape" and "quantiles" in arrays:
                arrays["quantiles"] = arrays["quantiles"][:-1]
            elif fault.kind == "nan" and "quantiles" in arrays and self._result_count > fault.value:
                arrays["quantiles"] = np.full_like(arrays["quantiles"], np.nan)

    def _trigger(self, fault: ChildFault, job: str | None, phase: Phase, total: float) -> None:
        match fault.kind:
            case "hang":
                self._never.wait()
            case "silent":
                _hold_gil()
            case "oscillate":
                for percent in cycle((fault.percent + 1, fault.percent)):
                    self._never.wait(_REPORT_SECONDS)
                    self._channel.report_progress(job, phase, total * percent / 100, total)
            case "stale":
                self._report_for_another_launch(job, phase)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                os._exit(int(fault.value))
            case "torn":
                self._send_partial_message()
                os.kill(os.getpid(), signal.SIGKILL)
            case "leak":
                _leak_memory()
            case "garbage":
                self._channel.send_raw(b"this is not a message\n" * 5)
            case "raise":
                raise ImportError("No module named 'a_library_that_is_not_there'")

    def _report_for_another_launch(self, job: str | None, phase: Phase) -> None:
        fields = {"job": job, "phase": phase.value, "done": 1.0, "total": 1.0}
        frame = encode(ChildMessage("progress", "an-earlier-launch", fields))
        while not self._never.wait(_REPORT_SECONDS):
            self._channel.send_raw(frame)

    def _send_partial_message(self) -> None:
        arrays = {"quantiles": np.zeros((64, 7))}
        frame = encode(ChildMessage("result", self._channel.launch_id, {"job": "partial"}, arrays))
        self._channel.send_raw(frame[: len(frame) // 2])


def _leak_memory() -> None:
    blocks = []
    while True:
        blocks.append(bytearray(_LEAK_BYTES))  # zeroed, so the pages are really allocated


def _hold_gil() -> None:
    """Call `pause()` without releasing the GIL, as a native extension with a bug would."""
    libc = ctypes.PyDLL(None)
    while True:
        libc.pause()
