"""The command a user types, as a subprocess with nothing of the machine's environment but a state directory of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest


@dataclass(frozen=True)
class CommandResult:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON object on stdout; fails when there is anything else."""
        document: dict[str, Any] = json.loads(self.out)
        return document


class Command(Protocol):
    def __call__(self, *arguments: str, timeout: float = 120, **environment: str) -> CommandResult: ...


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What every command gets: where programs are, an empty home, and its own state."""
    home = tmp_path / "home"
    home.mkdir()
    return {
        "PATH": os.defpath,
        "HOME": str(home),
        "STATE_DIR": str(tmp_path / "state"),
        "LOG_DIR": str(tmp_path / "logs"),
        "COLUMNS": "80",
    }


@pytest.fixture
def command(root: Path, tmp_path: Path, environment: dict[str, str]) -> Command:
    """Run `submit_prediction.py` with arguments, in a directory of the test's own."""

    def run(*arguments: str, timeout: float = 120, **environment_overrides: str) -> CommandResult:
        completed = subprocess.run(
            [sys.executable, str(root / "submit_prediction.py"), *arguments],
            cwd=tmp_path,
            env={**environment, **environment_overrides},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return CommandResult(completed.returncode, completed.stdout, completed.stderr)

    return run


@pytest.fixture
def one_epoch(environment: dict[str, str]) -> None:
    """The embedded chain of the command's state, with a single epoch that outlasts every test.

    The default one ends on the hour of the wall clock, and takes nothing any more in its last seconds.
    """
    from forecastd.clock import SystemClock
    from forecastd.localnet.chain import ChainConfig, LocalChain
    from forecastd.localnet.store import ChainStore, chain_path
    from forecastd.localnet.topics import TopicSpec

    rules = ChainConfig(topics=(TopicSpec(67, epoch_length=10**9, worker_submission_window=17_280),))  # a day of blocks
    store = ChainStore(chain_path(Path(environment["STATE_DIR"]), rules.chain_id))
    LocalChain(rules, store, SystemClock())
    store.close()


@pytest.fixture
def time_left_in_the_hour() -> None:
    """For the embedded chain as it is by default: its epoch is not about to end."""
    pause_event = threading.Event()
    while (remaining := 3600 - time.time() % 3600) < 100:
        pause_event.wait(remaining)


@pytest.fixture
def once(command: Command, one_epoch: None) -> Callable[..., CommandResult]:
    """`--once --json` with more arguments, on a chain of one epoch; the answer is always exactly one JSON object."""

    def run(*arguments: str, **environment_overrides: str) -> CommandResult:
        completed = command("--once", "--json", *arguments, timeout=120, **environment_overrides)
        assert "Traceback" not in completed.err
        assert completed.document["exit_code"] == completed.code
        return completed

    return run


class Supervisord:
    """A real supervisord in a directory of its own, driven with `supervisorctl` over its unix socket.

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
        self.wait_until(lambda: "supervisord started" in self.log)  # said when its socket listens

    def add(
        self, directory: Path, *options: str, python: Path | None = None, fleet: bool = False, **seconds: int
    ) -> None:
        """Install the daemon (or the fleet), or what stands in for it as `python`, to run in `directory`, and take it over.

        `seconds`: instead of those in the file that ships; a program counts as started after 1 unless `startsecs` is given.
        """
        from forecastd.service import supervisord
        from forecastd.service.launch import DAEMON_SERVICE, ENTRY_POINT, FLEET_SERVICE, LaunchSpec

        launch = LaunchSpec(
            python=python or Path(sys.executable), program=ENTRY_POINT, directory=directory, options=options,
            user=None, per_user=False, state=None, logs=None, credential=None, service=FLEET_SERVICE if fleet else DAEMON_SERVICE,
        )  # fmt: skip
        text = supervisord.render(launch.service.template_path("supervisord").read_text(encoding="utf-8"), launch)
        self.NAME = launch.service.name
        for name, value in ({"startsecs": 1} | seconds).items():
            text, count = re.subn(rf"^{name}=\d+$", f"{name}={value}", text, flags=re.MULTILINE)
            assert count == 1, name
        (self.programs / f"{self.NAME}.conf").write_text(text)
        assert self.NAME in self.ctl("reread").out
        assert "added process group" in self.ctl("update").out

    def ctl(self, *arguments: str) -> CommandResult:
        """`supervisorctl` with these arguments, to its end."""
        completed = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self._config), *arguments],
            cwd=self.home, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        return CommandResult(completed.returncode, completed.stdout, completed.stderr)

    @property
    def state(self) -> str:
        """Such as RUNNING, STOPPED, EXITED, BACKOFF."""
        return str(self._process_info()["statename"])

    @property
    def pid(self) -> int:
        """The program's process, 0 when none runs."""
        return int(self._process_info()["pid"])

    @property
    def output(self) -> str:
        """What the program has written."""
        path = Path(self._process_info()["stdout_logfile"])
        return path.read_text(encoding="utf-8")

    def _process_info(self) -> dict[str, Any]:
        """What supervisord knows of the program, over the same socket as `supervisorctl` but in milliseconds."""
        from xmlrpc.client import ServerProxy

        from supervisor.xmlrpc import SupervisorTransport

        with closing(SupervisorTransport(None, None, serverurl=f"unix://{self.home}/socket")) as transport:
            document: dict[str, Any] = ServerProxy("http://127.0.0.1", transport=transport).supervisor.getProcessInfo(
                self.NAME
            )  # type: ignore[assignment]
        return document

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until something is so; fails with supervisord's own log when it is not in time."""
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
    """A real supervisord without programs. Its own directory has a short path: a socket's name has room for 107 bytes."""
    supervisor = Supervisord(tmp_path_factory.mktemp("sv"), environment)
    yield supervisor
    supervisor.close()


class SystemdBox(Protocol):
    def __call__(self, job: str, **files: str) -> str: ...


@pytest.fixture
def systemd_box(root: Path, tmp_path_factory: pytest.TempPathFactory) -> SystemdBox:
    """Run a job, a script, as root beside a real systemd that is process 1 of a box of its own; gives what it said.

    `files` go into /run/box, with the job; test_service_box.sh tells what else is there. Skips where none can be booted.
    """
    if os.getuid() != 0 or shutil.which("unshare") is None or not Path("/lib/systemd/systemd").exists():
        pytest.skip("a box with a systemd of its own needs root, unshare and systemd")

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
        output_file = share / "said"
        return (output_file.read_text(encoding="utf-8") if output_file.is_file() else "") + completed.stdout

    output = run("#!/bin/sh\necho the box is up\n")
    if "the box is up\n" not in output:
        pytest.skip(f"no systemd can be booted here: {output}")
    return run
