"""Faults that a child brings on itself when it is asked to, at a place of its real work: for trials, and for the tests.

A fault is written `KIND[:VALUE][@PLACE]`; a place is a percentage of the job's work, a prediction or a training, or the name
of a phase. `hang@99` stops for ever at 99 % of it, `slow:0.5@post_processing` takes half a second more for each step of that
phase.
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

from forecastd.supervise.detector import Phase
from forecastd.supervise.messages import Message, encode
from forecastd.supervise.voice import Voice

_LEAK = 16 << 20
_LINE = "a model that prints\n" * 51 + "\n"  # of about 1 KiB

# What each kind does; `VALUE` is what its value means, where it takes one.
KINDS: Mapping[str, str] = {
    "hang": "stop getting on, alive as ever",
    "silent": "stop in native code that holds the interpreter: not even a sign of life",
    "oscillate": "go one percent on and back again, for ever",
    "stale": "report rising progress for another launch, and none for this one",
    "crash": "die of a segmentation fault",
    "exit": "call os._exit(VALUE, 3 by default)",
    "torn": "be killed in the middle of a message",
    "leak": "take memory until there is no more",
    "garbage": "write what is no message to the pipe",
    "raise": "raise an error that nobody foresaw; with @loading, one at import",
    "slow": "take VALUE seconds longer (1 by default) for each step, which is healthy below the limit",
    "deaf": "never read the pipe once the model is loaded",
    "fork": "leave a process of its own behind",
    "print": "print VALUE KiB (64 by default) to stdout",
    "shape": "answer with a row too few",
    "nan": "answer with NaN after VALUE good answers (0 by default)",
    "ignore-term": "do not end on SIGTERM",
}
_PLACED = {"hang", "silent", "oscillate", "stale", "crash", "exit", "torn", "leak", "garbage", "raise"}
_VALUED = {"exit": 3.0, "slow": 1.0, "print": 64.0, "nan": 0.0}
_PHASES = tuple(phase.value for phase in Phase if phase not in {Phase.STARTING, Phase.IDLE, Phase.TRAINING})


@dataclass(frozen=True)
class Fault:
    """One fault: what, with which value, from which percentage of which phase on. `phase` None: everywhere."""

    kind: str
    value: float
    phase: Phase | None
    percent: float


def parse_faults(text: str) -> tuple[Fault, ...]:
    """The faults of a list with commas between.

    Raises:
        ValueError: naming what is wrong and what there is.
    """
    return tuple(_parse(part.strip()) for part in text.split(",") if part.strip())


def _parse(text: str) -> Fault:
    head, _, place = text.partition("@")
    kind, _, value = head.partition(":")
    if kind not in KINDS:
        raise ValueError(f"there is no fault {kind!r}; there are {', '.join(KINDS)}")
    if value and kind not in _VALUED:
        raise ValueError(f"{kind} takes no value, so not {value!r}")
    if place and kind not in _PLACED and kind != "slow":
        raise ValueError(f"{kind} takes no place, so not {place!r}")
    phase: Phase | None = Phase.PREDICTING
    percent = 50.0
    if place in _PHASES:
        phase, percent = Phase(place), 0.0
    elif place:
        percent = _number(place, f"a percentage or one of {', '.join(_PHASES)}", 100)
    elif kind == "slow":
        phase = None
    return Fault(kind, _number(value, "a number", 1e6) if value else _VALUED.get(kind, 0.0), phase, percent)


def _number(text: str, wanted: str, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise ValueError(f"{text!r} must be {wanted}, from 0 to {most:g}")
    return number


class Saboteur:
    """Does to this child what its faults say. Without faults it does nothing."""

    def __init__(self, faults: Sequence[Fault], voice: Voice) -> None:
        self._faults, self._voice, self._answers = faults, voice, 0
        self._never = Event()
        for fault in faults:
            if fault.kind == "ignore-term":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            elif fault.kind == "fork":
                self._fork()
            elif fault.kind == "print":
                print(_LINE * int(fault.value), flush=True)  # noqa: T201 - this is what the fault is

    def reach(self, job: str | None, phase: Phase, done: float, total: float) -> None:
        """The work is about to report this progress: what is due by then happens now."""
        places = {None, Phase.PREDICTING if phase is Phase.TRAINING else phase}
        for fault in self._faults:
            if fault.phase not in places:
                continue
            if fault.kind == "slow":
                if done > 0:  # a phase that begins has no step behind it
                    self._never.wait(fault.value)
            elif fault.kind in _PLACED and 100 * done >= fault.percent * total:
                self._voice.report(job, phase, total * fault.percent / 100, total)
                self._act(fault, job, phase, total)

    def hear(self) -> None:
        """The child is about to read its pipe."""
        if any(fault.kind == "deaf" for fault in self._faults):
            self._never.wait()

    def answer(self, message: Message) -> Message:
        """What becomes of a good answer."""
        self._answers += 1
        for fault in self._faults:
            quantiles = message.arrays["quantiles"]
            if fault.kind == "shape":
                message.arrays["quantiles"] = quantiles[:-1]
            elif fault.kind == "nan" and self._answers > fault.value:
                message.arrays["quantiles"] = np.full_like(quantiles, np.nan)
        return message

    def _act(self, fault: Fault, job: str | None, phase: Phase, total: float) -> None:
        at = total * fault.percent / 100
        deeds: Mapping[str, Callable[[], object]] = {
            "hang": self._never.wait,
            "silent": _hold_the_interpreter,
            "oscillate": lambda: self._again(lambda up: self._voice.report(job, phase, at + up * total / 100, total)),
            "stale": lambda: self._again(lambda _: self._voice.report_stale(job, phase)),
            "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
            "exit": lambda: os._exit(int(fault.value)),
            "torn": self._tear,
            "leak": self._leak,
            "garbage": lambda: self._voice.say_raw(b"this is no message, and never was one\n" * 3),
            "raise": _raise,
        }
        deeds[fault.kind]()

    def _again(self, report: Callable[[int], None]) -> None:
        up = 1
        while not self._never.wait(0.05):
            report(up)
            up = 1 - up

    def _tear(self) -> None:
        frame = encode(Message("result", self._voice.launch, {"job": "torn"}, {"quantiles": np.zeros((64, 7))}))
        self._voice.say_raw(frame[: len(frame) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    def _leak(self) -> None:
        kept = []
        while True:
            kept.append(bytearray(_LEAK))  # zeroed, so the pages are really there

    def _fork(self) -> None:
        if os.fork() == 0:
            while True:
                signal.pause()


def _hold_the_interpreter() -> None:
    """`pause()` called without giving up the interpreter's lock, as a native extension with a bug would."""
    libc = ctypes.PyDLL(None)
    while True:
        libc.pause()


def _raise() -> None:
    raise ImportError("No module named 'a_library_that_is_not_there'")
