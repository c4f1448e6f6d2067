"""Runs `submit_prediction.py` many times without paying for its imports each time.

A server process imports the program once and forks for each command. The fork is a process of its own: it gets the
arguments, environment, directory and outputs of its command and nothing else, and calls the entry point as the script does.

Invariant: the server itself runs nothing of the program and starts no thread, so a fork begins where a new interpreter
would stand after its imports.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.support.commands import CommandResult

PRELOADED = (
    "cli.main", "cli.cycle", "cli.doctor", "cli.fleet", "cli.ledger.list", "cli.ledger.verify", "cli.status", "cli.supervise",
    "forecastd.localnet.embedded", "forecastd.submission.worker", "numpy", "requests",
)  # fmt: skip
INTERPRETER_VARIABLES = ("LANG", "LC_", "PYTHON")  # read when an interpreter starts: a fork comes too late for them
_MAX_REQUEST_BYTES = 1 << 17


class ForkServer:
    """Use as a context manager. `run` may be called from several threads."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> ForkServer:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            subprocess.run(
                [sys.executable, "-c", f"from tests.support.fork_server import detach; detach({theirs.fileno()})"],
                cwd=self._root, env={"PATH": os.defpath, "PYTHONPATH": str(self._root), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], check=True,
            )  # fmt: skip
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()  # which ends the server

    def run(
        self, arguments: Sequence[str], *, directory: Path, environment: Mapping[str, str], timeout: float
    ) -> CommandResult:
        """Run the program to its end.

        Raises:
            subprocess.TimeoutExpired: it took longer than `timeout` seconds, and was killed.
        """
        if any(name.startswith(INTERPRETER_VARIABLES) for name in environment):
            return self._run_interpreter(arguments, directory, environment, timeout)
        request = {"arguments": list(arguments), "directory": str(directory), "environment": dict(environment)}
        reader, writer = os.pipe()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, os.fdopen(reader, "rb", 0) as status:
            with os.fdopen(writer, "wb") as report:
                descriptors = [out.fileno(), err.fileno(), report.fileno()]
                socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
            pid = int(status.read(8))
            if not select.select([status], [], [], timeout)[0]:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(list(arguments), timeout)
            code = os.waitstatus_to_exitcode(int(status.read(8)))
            out.seek(0)
            err.seek(0)
            return CommandResult(code, out.read().decode(), err.read().decode())

    def _run_interpreter(
        self, arguments: Sequence[str], directory: Path, environment: Mapping[str, str], timeout: float
    ) -> CommandResult:
        completed = subprocess.run(
            [sys.executable, str(self._root / "submit_prediction.py"), *arguments], cwd=directory, env=environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        return CommandResult(completed.returncode, completed.stdout, completed.stderr)


def detach(descriptor: int) -> None:
    """Serve in a process that is not a descendant of the test's: tests look for children that were left behind."""
    if os.fork() == 0:
        serve(descriptor)
    os._exit(0)


def serve(descriptor: int) -> None:
    """Fork for each request until the other end is closed."""
    for module in PRELOADED:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing waits for the processes that wait for the commands
    with socket.socket(fileno=descriptor) as connection:
        while True:
            message, descriptors, _, _ = socket.recv_fds(connection, _MAX_REQUEST_BYTES, 3)
            if not message:
                return
            if os.fork() == 0:
                connection.close()
                _run_and_report(json.loads(message), *descriptors)
            for received in descriptors:
                os.close(received)


def _run_and_report(request: Mapping[str, object], out: int, err: int, status: int) -> None:
    """Fork for the command, report its pid, then its wait status: each a number in 8 bytes."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(status)
        _run(request, out, err)
    os.write(status, b"%8d" % pid)
    os.write(status, b"%8d" % os.waitpid(pid, 0)[1])
    os._exit(0)


def _run(request: Mapping[str, object], out: int, err: int) -> None:
    """Become the command: its outputs, environment, directory and arguments; then the entry point, and the end."""
    for source, target in ((out, 1), (err, 2)):
        os.dup2(source, target)
        os.close(source)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(str(request["directory"]))
    os.environ.clear()
    os.environ.update(dict(request["environment"]))  # type: ignore[call-overload]
    sys.argv = ["submit_prediction.py", *request["arguments"]]  # type: ignore[misc]
    code = 1
    try:
        importlib.import_module("cli.main").run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - as an interpreter ends
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = code or 120
        os._exit(code)
