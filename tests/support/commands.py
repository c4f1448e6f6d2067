"""The result of a command that a test runs as a subprocess."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class CommandResult:
    """Exit code, stdout and stderr of a command that has exited."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON object on stdout; raises when stdout has anything else."""
        document: dict[str, Any] = json.loads(self.out)
        return document


class Command(Protocol):
    """Runs `submit_prediction.py` with these arguments, and with these variables added to the environment."""

    def __call__(self, *arguments: str, timeout: float = 120, **environment: str) -> CommandResult: ...
