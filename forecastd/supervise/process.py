"""One child process as the parent sees it: start, send, read and stop without ever blocking.

The child is executed, not forked, so it holds nothing of the parent's memory. Its environment is built here from a short list
that contains no secret. It leads its own session, so processes that a model forks are killed with it.

Invariant: start children from a thread that lives as long as they should. The kernel's parent-death signal follows the
thread, not the process.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import uuid
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

import forecastd
from forecastd.supervise import detector
from forecastd.supervise.detector import Phase, ProcessState
from forecastd.supervise.jobs import ChildSetup
from forecastd.supervise.protocol import ChildMessage, MessageDecoder, frame_buffers, printable
from forecastd.supervise.queue import WorkItem

_CHUNK_BYTES = 1 << 18
_MAX_CHUNKS = 4  # read at a time: ten thousand small messages, in a fraction of a second
_SOCKET_BUFFER_BYTES = 4 << 20  # enough to send the inputs of hundreds of servers at once
_TAIL_BYTES = 1 << 16  # of output that is kept: enough for the stacks of many threads
_MAX_LINES = 100
_DUMP_SECONDS = 0.1  # a stack dump is complete this long after its first line

StopMode = Literal["graceful", "dump_stacks", "kill"]


def child_environment(threads: int = 1) -> dict[str, str]:
    """The child's whole environment: the paths of Python and the project, and the threads of the numeric libraries.

    One thread is fastest for the small matrices of a prediction; 0 leaves it to the libraries, which use every core.
    """
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path(forecastd.__file__).resolve().parent.parent),
        **({"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)} if threads else {}),
    }


def output_lines(output: bytes) -> list[str]:
    """A child's output as log lines: no empty ones, each at most 1000 characters, and a bounded number of them."""
    lines = [line[:1000] for line in output.decode("utf-8", "replace").split("\n") if line.strip()]
    omitted = len(lines) - _MAX_LINES
    return [*lines[:_MAX_LINES], f"({omitted} more lines)"] if omitted > 0 else lines


class ChildProcess:
    """A running child and its channel. Every method but `kill` returns at once.

    `launch_number`: the number of its launch in the pool, from 1. `item`: the job that it works on. `bundle_sha256`: empty
    until it is ready. `last_warning`: the phase and last progress that it was warned for. `channel_closed_at`: when it closed
    its channel.
    """

    def __init__(self, now: float, setup: ChildSetup, memory: int) -> None:
        """Start the child. `memory`: bytes of address space it may use, 0 for no limit.

        The set-up's command gets four more arguments: the channel's descriptor, the launch id, this process's pid and
        `memory`.

        Raises:
            OSError: the machine cannot start another process.
        """
        self.state: ProcessState = detector.start(now, uuid.uuid4().hex)
        self.launch_number, self.bundle_sha256 = 0, ""
        self.item: WorkItem | None = None
        self.last_warning: tuple[Phase, float] | None = None
        self.channel_closed_at: float | None = None
        self.output_closed = False
        self._decoder = MessageDecoder()
        self._unsent: deque[memoryview] = deque()
        self._output_tail = b""
        self._shutdown_steps: list[tuple[float, signal.Signals | None]] = []
        with ExitStack() as on_error, ExitStack() as child_ends:
            self.output_fd, writer = os.pipe()
            on_error.callback(os.close, self.output_fd)
            child_ends.callback(os.close, writer)
            self.channel, child_channel = socket.socketpair()
            on_error.callback(self.channel.close)
            child_ends.callback(child_channel.close)
            for end in (self.channel, child_channel):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)  # capped by the system
            self._process = subprocess.Popen(
                [*setup.command, str(child_channel.fileno()), self.launch_id, str(os.getpid()), str(memory)],
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                env={**child_environment(setup.threads), **setup.environment},
                pass_fds=(child_channel.fileno(),),
                cwd="/",
                start_new_session=True,
            )
            on_error.pop_all()
        self.channel.setblocking(False)
        os.set_blocking(self.output_fd, False)
        try:
            self.exit_fd: int | None = os.pidfd_open(self.pid)  # becomes readable when the process ends
        except OSError:
            self.exit_fd = None  # the kernel does not support it

    @property
    def launch_id(self) -> str:
        return self.state.launch_id

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def sources(self) -> list[Any]:
        """What a selector should watch for reading: the channel, the output, and the end of the process."""
        return [self.channel, self.output_fd, *([] if self.exit_fd is None else [self.exit_fd])]

    @property
    def is_starting(self) -> bool:
        """Whether the child has not loaded its model yet."""
        return self.state.phase in {Phase.STARTING, Phase.LOADING, Phase.WARMING_UP}

    @property
    def is_ready(self) -> bool:
        """Whether the child has loaded its model, and is idle or at work."""
        return not self.is_starting

    @property
    def is_idle(self) -> bool:
        """Whether the child waits for a job and can receive one."""
        return self.state.phase is Phase.IDLE and self.channel_closed_at is None

    @property
    def job_name(self) -> str:
        item = self.item  # one read: another thread may call this while the pool's thread takes the item away
        return item.job.name if item else ""

    @property
    def has_unsent(self) -> bool:
        """Whether bytes wait to be sent."""
        return bool(self._unsent)

    def send(
        self, kind: str, fields: dict[str, object] | None = None, arrays: dict[str, NDArray[Any]] | None = None
    ) -> None:
        """Send a message as soon as the child reads it. A child that never reads does not block the parent."""
        self._unsent += frame_buffers(ChildMessage(kind, self.launch_id, fields or {}, arrays or {}))
        self.flush()

    def flush(self) -> None:
        """Send as many waiting bytes as the channel takes now."""
        try:
            while self._unsent:
                sent = self.channel.send(self._unsent[0])
                self._unsent[0] = self._unsent[0][sent:]
                if not len(self._unsent[0]):
                    self._unsent.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()  # the child is gone; `has_exited` reports it

    @property
    def protocol_error(self) -> str:
        """Why the received bytes are not a valid message; empty while they are."""
        return self._decoder.error

    def read_messages(self, now: float) -> list[ChildMessage]:
        """The messages received so far. Reads a bounded amount, so that a flooding child cannot keep the parent busy."""
        messages: list[ChildMessage] = []
        for _ in range(_MAX_CHUNKS):
            try:
                data = self.channel.recv(_CHUNK_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.channel_closed_at = self.channel_closed_at or now
                break
            messages += self._decoder.feed(data)
            if len(data) < _CHUNK_BYTES:
                break
        return messages

    def read_output(self) -> bytes:
        """A chunk of the child's stdout and stderr; the end of the output is kept for `output_tail`."""
        try:
            data = os.read(self.output_fd, _CHUNK_BYTES)
        except OSError:
            return b""
        self.output_closed = not data
        self._output_tail = (self._output_tail + data)[-_TAIL_BYTES:]
        return data

    def _drain(self) -> None:
        for _ in range(_MAX_CHUNKS):
            if not self.read_output():
                return

    @property
    def output_tail(self) -> str:
        """The end of the child's output."""
        return self._output_tail.decode("utf-8", "replace").strip()

    def stop(self, now: float, seconds: float, mode: StopMode) -> None:
        """Begin to stop the child within `seconds`: ask it first, dump its stacks first, or signal it at once."""
        self.state = detector.begin_stop(self.state, now)
        kill = now + 0.8 * seconds
        if mode == "graceful":
            self.send("stop")
            self._shutdown_steps = [(now + 0.4 * seconds, signal.SIGTERM), (kill, signal.SIGKILL)]
        elif mode == "dump_stacks":
            self._drain()
            self._output_tail = b""
            self.signal(signal.SIGUSR1)
            term = now + 0.4 * seconds
            self._shutdown_steps = [(term, None), (term, signal.SIGTERM), (min(term + 1.0, kill), signal.SIGKILL)]
        else:
            self._shutdown_steps = [(now, signal.SIGTERM), (min(now + 1.0, kill), signal.SIGKILL)]

    def next_shutdown_time(self) -> float:
        """The monotonic time of the next shutdown step; infinite when there is none."""
        return self._shutdown_steps[0][0] if self._shutdown_steps else float("inf")

    def advance_shutdown(self, now: float) -> str:
        """Run the shutdown steps that are due. Return the dumped stacks once; else an empty text."""
        stacks = ""
        if self._shutdown_steps and self._shutdown_steps[0][1] is None and self._output_tail:
            lead = max(0.0, self._shutdown_steps[0][0] - now - _DUMP_SECONDS)
            self._shutdown_steps = [(time - lead, signal_number) for time, signal_number in self._shutdown_steps]
        while self._shutdown_steps and self._shutdown_steps[0][0] <= now:
            signal_number = self._shutdown_steps.pop(0)[1]
            if signal_number is None:
                self._drain()
                stacks = self.output_tail
            else:
                self.signal(signal_number, group=True)
        return stacks

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Signal the child, or its whole process group. It is not reaped yet, so its pid cannot belong to another process."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                (os.killpg if group else os.kill)(self.pid, number)

    def has_exited(self) -> bool:
        """Whether the process has exited; reaps it and kills what remains of its group."""
        if self._process.returncode is None:
            try:
                exited = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            except ChildProcessError:
                exited = True
            if not exited:
                return False
            self.signal(signal.SIGKILL, group=True)
            self._process.poll()
        return True

    def exit_description(self) -> str:
        """How the process ended: the signal, or the exit status with the last line of output."""
        status = self._process.returncode
        self._drain()
        if status is None:
            return "still running"
        if status < 0:
            is_known = -status in {number.value for number in signal.Signals}
            return f"killed by {signal.Signals(-status).name if is_known else f'signal {-status}'}"
        lines = self.output_tail.splitlines()
        return f"exit status {status}{': ' + printable(lines[-1][:300]) if lines else ''}"

    def kill(self) -> None:
        """Kill the process group now and reap the child. The one call that waits, for the kernel only."""
        self.signal(signal.SIGKILL, group=True)
        self._process.wait()

    def close(self) -> None:
        """Close the descriptors."""
        self.channel.close()
        os.close(self.output_fd)
        if self.exit_fd is not None:
            os.close(self.exit_fd)
