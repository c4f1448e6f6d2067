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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event

import numpy as np

from forecastd.supervise.child_channel import ChildChannel
from forecastd.supervise.detector import Phase
from forecastd.supervise.protocol import ChildMessage, encode

_LEAK_BYTES = 16 << 20
_PRINTED_LINE = "a model that prints\n" * 51 + "\n"  # about 1 KiB

# What each kind does. VALUE is explained where the kind takes one.
FAULT_KINDS: Mapping[str, str] = {
    "hang": "stop making progress, but keep sending heartbeats",
    "silent": "stop in native code that holds the GIL: no heartbeats either",
    "oscillate": "move one percent forward and back, for ever",
    "stale": "report progress for another launch, and none for this one",
    "crash": "crash with a segmentation fault",
    "exit": "call os._exit(VALUE, 3 by default)",
    "torn": "be killed in the middle of sending a message",
    "leak": "allocate memory until there is no more",
    "garbage": "send bytes that are not a message",
    "raise": "raise an unexpected ImportError",
    "slow": "add VALUE seconds (1 by default) to each step; healthy below the limit",
    "deaf": "never read its channel once the model is loaded",
    "fork": "start a process of its own and leave it running",
    "print": "print VALUE KiB (64 by default) to stdout",
    "shape": "return a result with one row too few",
    "nan": "return NaN after VALUE valid results (0 by default)",
    "ignore-term": "ignore SIGTERM",
}
_KINDS_WITH_PLACE = {"hang", "silent", "oscillate", "stale", "crash", "exit", "torn", "leak", "garbage", "raise"}
_DEFAULT_VALUES = {"exit": 3.0, "slow": 1.0, "print": 64.0, "nan": 0.0}
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
    kind, _, value = head.partition(":")
    if kind not in FAULT_KINDS:
        raise ValueError(f"unknown fault {kind!r}; choose from {', '.join(FAULT_KINDS)}")
    if value and kind not in _DEFAULT_VALUES:
        raise ValueError(f"{kind} takes no value; remove {value!r}")
    if place and kind not in _KINDS_WITH_PLACE and kind != "slow":
        raise ValueError(f"{kind} takes no place; remove {place!r}")
    phase: Phase | None = Phase.PREDICTING
    percent = 50.0
    if place in _PHASE_NAMES:
        phase, percent = Phase(place), 0.0
    elif place:
        percent = _parse_number(place, f"a percentage or one of {', '.join(_PHASE_NAMES)}", 100)
    elif kind == "slow":
        phase = None
    return ChildFault(
        kind, _parse_number(value, "a number", 1e6) if value else _DEFAULT_VALUES.get(kind, 0.0), phase, percent
    )


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
            elif fault.kind == "fork":
                self._fork()
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
            elif fault.kind in _KINDS_WITH_PLACE and 100 * done >= fault.percent * total:
                self._channel.report_progress(job, phase, total * fault.percent / 100, total)
                self._trigger(fault, job, phase, total)

    def on_read(self) -> None:
        """Called before the child reads its channel."""
        if any(fault.kind == "deaf" for fault in self._faults):
            self._never.wait()

    def on_result(self, message: ChildMessage) -> ChildMessage:
        """Falsify a valid result, if a fault says so."""
        self._result_count += 1
        for fault in self._faults:
            quantiles = message.arrays["quantiles"]
            if fault.kind == "shape":
                message.arrays["quantiles"] = quantiles[:-1]
            elif fault.kind == "nan" and self._result_count > fault.value:
                message.arrays["quantiles"] = np.full_like(quantiles, np.nan)
        return message

    def _trigger(self, fault: ChildFault, job: str | None, phase: Phase, total: float) -> None:
        position = total * fault.percent / 100
        actions: Mapping[str, Callable[[], object]] = {
            "hang": self._never.wait,
            "silent": _hold_gil,
            "oscillate": lambda: self._repeat(
                lambda step: self._channel.report_progress(job, phase, position + step * total / 100, total)
            ),
            "stale": lambda: self._repeat(lambda _: self._channel.report_stale_progress(job, phase)),
            "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
            "exit": lambda: os._exit(int(fault.value)),
            "torn": self._send_partial_message,
            "leak": self._leak_memory,
            "garbage": lambda: self._channel.send_raw(b"this is not a message\n" * 5),
            "raise": _raise_import_error,
        }
        actions[fault.kind]()

    def _repeat(self, report: Callable[[int], None]) -> None:
        step = 1
        while not self._never.wait(0.05):
            report(step)
            step = 1 - step

    def _send_partial_message(self) -> None:
        frame = encode(
            ChildMessage("result", self._channel.launch_id, {"job": "partial"}, {"quantiles": np.zeros((64, 7))})
        )
        self._channel.send_raw(frame[: len(frame) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    def _leak_memory(self) -> None:
        blocks = []
        while True:
            blocks.append(bytearray(_LEAK_BYTES))  # zeroed, so the pages are really allocated

    def _fork(self) -> None:
        if os.fork() == 0:
            while True:
                signal.pause()


def _hold_gil() -> None:
    """Call `pause()` without releasing the GIL, as a native extension with a bug would."""
    libc = ctypes.PyDLL(None)
    while True:
        libc.pause()


def _raise_import_error() -> None:
    raise ImportError("No module named 'a_library_that_is_not_there'")
