"""The command a user types, as a subprocess with nothing of the machine's environment but a state directory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> dict[str, Any]:
        """The one JSON object on stdout; fails when there is anything else."""
        found: dict[str, Any] = json.loads(self.out)
        return found


class Command(Protocol):
    def __call__(self, *arguments: str, timeout: float = 120, **environment: str) -> Finished: ...


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

    def run(*arguments: str, timeout: float = 120, **more: str) -> Finished:
        done = subprocess.run(
            [sys.executable, str(root / "submit_prediction.py"), *arguments],
            cwd=tmp_path,
            env={**environment, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def once(command: Command) -> Callable[..., Finished]:
    """`--once --json` with more arguments; the answer is always exactly one JSON object."""

    def run(*arguments: str, **more: str) -> Finished:
        done = command("--once", "--json", *arguments, timeout=120, **more)
        assert "Traceback" not in done.err
        assert done.told["exit_code"] == done.code
        return done

    return run
