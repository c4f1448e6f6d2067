"""One child, seen from the parent: started, written to, read from and ended without ever waiting for it.

The child is exec'd, never forked, so nothing of the parent's memory is in it; its environment is built here from a
short list that holds no secret. It leads a session of its own, so that what a model forks is ended with it. Start children
from a thread that lives as long as they shall: the kernel's parent-death signal follows the thread, not the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

import forecastd
from forecastd.supervise import detector
from forecastd.supervise.detector import Watched
from forecastd.supervise.messages import Decoder, Message, buffers, printable

_CHUNK = 1 << 18
_CHUNKS = 16
_BUFFER = 4 << 20  # bytes that may lie in the channel: a forecast of hundreds of servers goes at once
_TAIL = 1 << 16  # bytes of what the child wrote that are kept: enough for the stacks of many threads
_LINES = 100
_DUMPED_SECONDS = 0.1  # a dump of stacks is whole that long after its first line


How = Literal["ask", "dump", "now"]


class ChildFailed(Exception):
    """The child died, hung or spoke nonsense, and so did those that stood in for it. The message tells the last."""


class ModelFailed(Exception):
    """The child lives and told what is wrong. `kind` is data, bundle or model; `check` the failed check's name, or empty."""

    def __init__(self, message: str, kind: str, check: str) -> None:
        super().__init__(message)
        self.kind, self.check = kind, check


def child_environment(threads: int = 1) -> dict[str, str]:
    """The child's whole environment: where Python and the project are, and how many threads for its matrices.

    One is best for the small matrices of a prediction; 0 leaves it to the libraries, which take every core.
    """
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path(forecastd.__file__).resolve().parent.parent),
        **({"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)} if threads else {}),
    }


def lines(written: bytes) -> list[str]:
    """What a child wrote at once, for a log: no empty line, and so few that who writes without end takes nobody's time."""
    told = [line[:1000] for line in written.decode("utf-8", "replace").split("\n") if line.strip()]
    more = len(told) - _LINES
    return [*told[:_LINES], f"({more} lines more)"] if more > 0 else told


class ChildProcess:
    """A running child with its channel. Everything here returns at once."""

    def __init__(self, now: float, *, memory: int, threads: int = 1, more: Mapping[str, str] | None = None) -> None:
        """Start it. `memory`: bytes of address space it may use, 0 for no limit. `more`: for its environment.

        Raises:
            OSError: the machine cannot start another process.
        """
        self.watched: Watched = detector.launched(now, uuid.uuid4().hex)
        self.hung_up = self.mute = False  # the channel, the output was closed from its side
        self._decoder = Decoder()
        self._unsent: deque[memoryview] = deque()
        self._written: deque[bytes] = deque()
        self._kept = 0
        self._deeds: list[tuple[float, signal.Signals | None]] = []
        environment = child_environment(threads) | dict(more or {})
        reader, writer = os.pipe()
        try:
            self.channel, theirs = socket.socketpair()
        except OSError:
            os.close(reader)
            os.close(writer)
            raise
        for end in (self.channel, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)  # or as much as the machine allows
        self.errors = reader
        arguments = [str(theirs.fileno()), self.launch, str(os.getpid()), str(memory)]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "forecastd.supervise.child", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=writer,
                    stderr=writer,
                    env=environment,
                    pass_fds=(theirs.fileno(),),
                    cwd="/",
                    start_new_session=True,
                )
        except OSError:
            self.channel.close()
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self.channel.setblocking(False)
        os.set_blocking(reader, False)
        self.death = _watch(self._process.pid)

    @property
    def launch(self) -> str:
        return self.watched.launch

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def sources(self) -> list[Any]:
        """What becomes readable when there is something to hear of the child: channel, output, end."""
        return [self.channel, self.errors, *([] if self.death is None else [self.death])]

    @property
    def wants_to_write(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._unsent)

    def tell(
        self, kind: str, fields: dict[str, object] | None = None, arrays: dict[str, NDArray[Any]] | None = None
    ) -> None:
        """Send a message as soon as the child takes it; a child that never reads costs nothing but its own deadline."""
        self._unsent += buffers(Message(kind, self.launch, fields or {}, arrays or {}))
        self.write()

    def write(self) -> None:
        """Send what the child takes now."""
        try:
            while self._unsent:
                sent = self.channel.send(self._unsent[0])
                self._unsent[0] = self._unsent[0][sent:]
                if not len(self._unsent[0]):
                    self._unsent.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()  # it is gone: `ended` tells

    @property
    def garbled(self) -> str:
        """What came that was no message; empty as long as all were."""
        return self._decoder.garbled

    def read(self) -> list[Message]:
        """The messages that came. Bounded, so that a child that never stops talking cannot keep the parent busy."""
        found: list[Message] = []
        for _ in range(_CHUNKS):
            try:
                data = self.channel.recv(_CHUNK)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.hung_up = True
                break
            found += self._decoder.feed(data)
            if len(data) < _CHUNK:
                break
        return found

    def read_errors(self) -> bytes:
        """What the child wrote to stdout and stderr since the last call; the last of it is kept for `tail`."""
        try:
            data = os.read(self.errors, _CHUNK)
        except OSError:
            return b""
        if not data:
            self.mute = True
            return b""
        self._written.append(data)
        self._kept += len(data)
        while self._written and self._kept - len(self._written[0]) > _TAIL:
            self._kept -= len(self._written.popleft())
        return data

    def _drain(self) -> None:
        for _ in range(_CHUNKS):
            if not self.read_errors():
                return

    @property
    def tail(self) -> str:
        """The last of what the child wrote."""
        return b"".join(self._written).decode("utf-8", "replace").strip()

    def stop(self, now: float, seconds: float, how: How) -> None:
        """Begin to end the child within `seconds`: let it go by itself first, dump its stacks first, or at once."""
        self.watched = detector.stopping(self.watched, now)
        kill = now + 0.8 * seconds
        if how == "ask":
            self.tell("stop")
            self._deeds = [(now + 0.4 * seconds, signal.SIGTERM), (kill, signal.SIGKILL)]
        elif how == "dump":
            self._drain()
            self._written.clear()
            self._kept = 0
            self.signal(signal.SIGUSR1)
            term = now + 0.4 * seconds
            self._deeds = [(term, None), (term, signal.SIGTERM), (min(term + 1.0, kill), signal.SIGKILL)]
        else:
            self._deeds = [(now, signal.SIGTERM), (min(now + 1.0, kill), signal.SIGKILL)]

    def next_deed(self) -> float:
        """When `go_on` has something to do next; infinite when it has not."""
        return self._deeds[0][0] if self._deeds else float("inf")

    def go_on(self, now: float) -> str:
        """Do what is due of ending the child. Gives the stacks that it dumped, once; else an empty text."""
        told = ""
        if self._deeds and self._deeds[0][1] is None and self._written:
            early = max(0.0, self._deeds[0][0] - now - _DUMPED_SECONDS)
            self._deeds = [(at - early, deed) for at, deed in self._deeds]
        while self._deeds and self._deeds[0][0] <= now:
            deed = self._deeds.pop(0)[1]
            if deed is None:
                self._drain()
                told = self.tail
            else:
                self.signal(deed, group=True)
        return told

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Signal the child, or it and all that it started. Not reaped yet, so its pid cannot be another's."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                (os.killpg if group else os.kill)(self.pid, number)

    def ended(self) -> bool:
        """Whether the process is gone; reaps it, and ends what it has left behind."""
        if self._process.returncode is None:
            try:
                gone = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            except ChildProcessError:
                gone = True
            if not gone:
                return False
            self.signal(signal.SIGKILL, group=True)
            self._process.poll()
        return True

    def fate(self) -> str:
        """How the process ended; for an end of its own, with the last line it wrote."""
        status = self._process.returncode
        self._drain()
        if status is None:
            return "still running"
        if status < 0:
            known = -status in {number.value for number in signal.Signals}
            return f"killed by {signal.Signals(-status).name if known else f'signal {-status}'}"
        lines = self.tail.splitlines()
        return f"exit status {status}{': ' + printable(lines[-1][:300]) if lines else ''}"

    def kill(self) -> None:
        """End the process now and for good. The one call that waits, for the kernel alone."""
        self.signal(signal.SIGKILL, group=True)
        self._process.wait()

    def close(self) -> None:
        """Give the descriptors back."""
        self.channel.close()
        os.close(self.errors)
        if self.death is not None:
            os.close(self.death)


def _watch(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where the kernel has none."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
