"""Runs commands as subprocesses with a clean environment and a separate state directory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol
from xmlrpc.client import ServerProxy

import pytest
from supervisor.xmlrpc import SupervisorTransport

from forecastd.clock import SystemClock
from forecastd.localnet.chain import ChainConfig, LocalChain
from forecastd.localnet.store import ChainStore, chain_path
from forecastd.localnet.topics import TopicSpec
from forecastd.service.launch import DAEMON_SERVICE, ENTRY_POINT, FLEET_SERVICE, LaunchSpec
from forecastd.service.template import render_template
from tests.support.commands import Command, CommandResult
from tests.support.fork_server import ForkServer


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of every command: PATH, an empty home, and a separate state directory."""
    home = tmp_path / "home"
    home.mkdir()
    return {
        "PATH": os.defpath,
        "HOME": str(home),
        "STATE_DIR": str(tmp_path / "state"),
        "LOG_DIR": str(tmp_path / "logs"),
        "COLUMNS": "80",
    }


@pytest.fixture(scope="session")
def fork_server(root: Path) -> Iterator[ForkServer]:
    """The process that runs the commands of `command`."""
    with ForkServer(root) as server:
        yield server


@pytest.fixture
def command(fork_server: ForkServer, tmp_path: Path, environment: dict[str, str]) -> Command:
    """Run `submit_prediction.py` with arguments, in the directory of the test."""

    def run(*arguments: str, timeout: float = 120, **environment_overrides: str) -> CommandResult:
        return fork_server.run(
            arguments, directory=tmp_path, environment={**environment, **environment_overrides}, timeout=timeout
        )

    return run


@pytest.fixture
def one_epoch(environment: dict[str, str]) -> None:
    """The embedded chain of the command's state, with a single epoch that outlasts every test.

    The default epoch ends on the hour of the wall clock, and its last seconds are too late for a submission.
    """
    rules = ChainConfig(topics=(TopicSpec(67, epoch_length=10**9, worker_submission_window=17_280),))  # a day of blocks
    store = ChainStore(chain_path(Path(environment["STATE_DIR"]), rules.chain_id))
    LocalChain(rules, store, SystemClock())
    store.close()


@pytest.fixture
def time_left_in_the_hour() -> None:
    """Wait until the default epoch of the embedded chain is not about to end."""
    pause_event = threading.Event()
    while (remaining := 3600 - time.time() % 3600) < 100:
        pause_event.wait(remaining)


@pytest.fixture
def once(command: Command, one_epoch: None) -> Callable[..., CommandResult]:
    """Run `--once --json` with more arguments, on a chain of one epoch; the output is exactly one JSON object."""

    def run(*arguments: str, **environment_overrides: str) -> CommandResult:
        completed = command("--once", "--json", *arguments, timeout=120, **environment_overrides)
        assert "Traceback" not in completed.err
        assert completed.document["exit_code"] == completed.code
        return completed

    return run


class Supervisord:
    """A real supervisord in a separate directory, controlled by `supervisorctl` over its unix socket.

    Programs are files in `programs`; `NAME` is the one that `add` writes, as `forecastd service install` would.
    """

    NAME = "allora-submission"

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.home, self.programs, self._environment = home, home / "conf.d", environment
        self.programs.mkdir()
        self._config = home / "supervisord.conf"
        self._config.write_text(
            f"[supervisord]\nnodaemon=true\nlogfile={home}/supervisord.log\npidfile={home}/pid\nchildlogdir={home}\n"
            f"[unix_http_server]\nfile={home}/socket\n[supervisorctl]\nserverurl=unix://{home}/socket\n"
            "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n"
            f"[include]\nfiles={home}/conf.d/*.conf\n"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(self._config)],
            cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.wait_until(lambda: "supervisord started" in self.log)  # logged when its socket listens

    def add(
        self, directory: Path, *options: str, python: Path | None = None, fleet: bool = False, **seconds: int
    ) -> None:
        """Install the daemon (or the fleet), or a replacement for it as `python`, with `directory` as working directory.

        `seconds` replace those of the shipped file; `startsecs` is 1 by default.
        """
        launch = LaunchSpec(
            python=python or Path(sys.executable), program=ENTRY_POINT, directory=directory, options=options,
            user=None, per_user=False, state=None, logs=None, credential=None,
            service=FLEET_SERVICE if fleet else DAEMON_SERVICE,
        )  # fmt: skip
        text = render_template("supervisord", launch)
        self.NAME = launch.service.name
        for name, value in ({"startsecs": 1} | seconds).items():
            text, count = re.subn(rf"^{name}=\d+$", f"{name}={value}", text, flags=re.MULTILINE)
            assert count == 1, name
        (self.programs / f"{self.NAME}.conf").write_text(text)
        assert self.NAME in self.ctl("reread").out
        assert "added process group" in self.ctl("update").out

    def ctl(self, *arguments: str) -> CommandResult:
        """Run `supervisorctl` with these arguments."""
        completed = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self._config), *arguments],
            cwd=self.home, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        return CommandResult(completed.returncode, completed.stdout, completed.stderr)

    @property
    def state(self) -> str:
        """The state of the program: RUNNING, STOPPED, EXITED, BACKOFF, ..."""
        return str(self._process_info()["statename"])

    @property
    def pid(self) -> int:
        """The pid of the program, 0 when it does not run."""
        return int(self._process_info()["pid"])

    @property
    def output(self) -> str:
        """The output of the program."""
        path = Path(self._process_info()["stdout_logfile"])
        return path.read_text(encoding="utf-8")

    def _process_info(self) -> dict[str, Any]:
        """The program's state by supervisord, over the socket of `supervisorctl` but in milliseconds."""
        with closing(SupervisorTransport(None, None, serverurl=f"unix://{self.home}/socket")) as transport:
            document: dict[str, Any] = ServerProxy("http://127.0.0.1", transport=transport).supervisor.getProcessInfo(
                self.NAME
            )  # type: ignore[assignment]
        return document

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until `condition()` is true; fail with supervisord's log when it is not within `seconds`."""
        pause_event = threading.Event()
        for _ in range(int(seconds / 0.1)):
            if condition():
                return
            assert self._process.poll() is None, self.log
            pause_event.wait(0.1)
        pytest.fail(f"not within {seconds:g} s:\n{self.log}")

    @property
    def log(self) -> str:
        """Supervisord's own log."""
        path = self.home / "supervisord.log"
        return path.read_text() if path.is_file() else ""

    def close(self) -> None:
        """Stop the programs and supervisord."""
        self._process.terminate()
        self._process.wait(120)


@pytest.fixture
def supervisord(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Supervisord]:
    """A real supervisord without programs. Its directory has a short path: a socket's name has at most 107 bytes."""
    supervisor = Supervisord(tmp_path_factory.mktemp("sv"), environment)
    yield supervisor
    supervisor.close()


class SystemdBox(Protocol):
    def __call__(self, job: str, **files: str) -> str: ...


@pytest.fixture
def systemd_box(root: Path, tmp_path_factory: pytest.TempPathFactory) -> SystemdBox:
    """Run a script as root next to a real systemd, which is process 1 of a separate namespace; returns its output.

    `files` are copied to /run/box together with the script; test_service_box.sh describes the rest. Skips where systemd
    cannot be booted.
    """
    if os.getuid() != 0 or shutil.which("unshare") is None or not Path("/lib/systemd/systemd").exists():
        pytest.skip("a separate systemd needs root, unshare and systemd")

    def run(job: str, **files: str) -> str:
        share = tmp_path_factory.mktemp("box")
        for name, text in {"job": job, **files}.items():
            (share / name).write_text(text, encoding="utf-8")
            (share / name).chmod(0o755)
        share.chmod(0o755)
        base = Path(sys.executable).resolve().parent.parent
        script = root / "tests" / "acceptance" / "test_service_box.sh"
        completed = subprocess.run(
            ["/bin/bash", str(script), str(share), str(root), sys.prefix, str(base)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280, check=False,
        )  # fmt: skip
        output_file = share / "output"
        return (output_file.read_text(encoding="utf-8") if output_file.is_file() else "") + completed.stdout

    output = run("#!/bin/sh\necho the box is up\n")
    if "the box is up\n" not in output:
        pytest.skip(f"systemd cannot be booted here: {output}")
    return run
