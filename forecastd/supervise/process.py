"""One child that runs a model, seen from the parent: start it, ask it, stop it, and say what went wrong.

The child is exec'd, never forked, so nothing of the parent's memory is in it; its environment is built here from a
short list that holds no secret. Every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import forecastd
from forecastd.supervise.messages import ChannelClosed, GarbledMessage, Message, receive, send
from models.base import Forecast, ModelInput

MEMORY_LIMIT = 4 << 30  # address space, bytes; a prediction needs well under 1 GiB of it
_STOP_SECONDS = 2.0


class ChildFailed(Exception):
    """The child died, hung or spoke nonsense. The message says which, and the last thing it wrote to stderr."""


class ModelFailed(Exception):
    """The child lives and told what is wrong with the model. `check` is the failed check's name, or empty."""

    def __init__(self, message: str, check: str) -> None:
        super().__init__(message)
        self.check = check


def child_environment() -> dict[str, str]:
    """The child's whole environment: where Python and the project are, and one thread for small matrices."""
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path(forecastd.__file__).resolve().parent.parent),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


class ModelProcess:
    """A running child. Use as a context manager: leaving stops it."""

    def __init__(self, bundle: Path, *, memory: int = MEMORY_LIMIT) -> None:
        """Start the child and ask it to load `bundle`; returns at once, `ready` waits.

        Raises:
            ChildFailed: the machine cannot start another process.
        """
        self._launch = uuid.uuid4().hex
        self._proven = ""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `stop`, with the child
        self._channel, theirs = socket.socketpair()
        arguments = [str(theirs.fileno()), self._launch, str(os.getpid()), str(memory)]
        try:
            with theirs:
                self._child = subprocess.Popen(
                    [sys.executable, "-P", "-m", "forecastd.supervise.child", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=self._errors,
                    stderr=self._errors,
                    env=child_environment(),
                    pass_fds=(theirs.fileno(),),
                    cwd="/",
                )
        except OSError as error:
            self._channel.close()
            self._errors.close()
            raise ChildFailed(f"The model's process could not be started: {error.strerror}.") from error
        self._channel.settimeout(_STOP_SECONDS)
        with contextlib.suppress(ChannelClosed, TimeoutError):  # `ready` tells what became of the child
            send(self._channel, Message("load", self._launch, {"bundle": str(bundle.resolve())}))

    @property
    def pid(self) -> int:
        return self._child.pid

    def ready(self, timeout: float) -> str:
        """Wait until the bundle is loaded and has reproduced its canary; gives the bundle's sha256.

        Raises:
            ModelFailed: the bundle is no good.
            ChildFailed: the child died, hung or spoke nonsense.
        """
        if not self._proven:
            self._proven = str(self._answer("ready", timeout).fields["bundle_sha256"])
        return self._proven

    def predict(self, inputs: ModelInput, timeout: float) -> Forecast:
        """One forecast. Raises as `ready` does."""
        fields = {"end": inputs.end, "step": inputs.step}
        arrays = {"target": inputs.target, "past": inputs.past, "known": inputs.known}
        self._channel.settimeout(timeout)
        self._tell(Message("predict", self._launch, fields, arrays))
        answer = self._answer("result", timeout)
        try:
            told = answer.fields
            return Forecast(
                end=int(told["end"]),
                step=int(told["step"]),
                levels=tuple(float(level) for level in told["levels"]),
                quantiles=answer.arrays["quantiles"],
                value=float(told["value"]),
                input_sha256=str(told["input_sha256"]),
                bundle_sha256=str(told["bundle_sha256"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ChildFailed(f"The model's answer lacks or garbles {error}.") from error

    def stop(self) -> None:
        """End the child: ask, then terminate, then kill; never waits longer than a few seconds."""
        with contextlib.suppress(ChannelClosed, TimeoutError):
            send(self._channel, Message("stop", self._launch))
        self._channel.close()
        for harder in (self._child.terminate, self._child.kill, None):
            try:
                self._child.wait(_STOP_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if harder is not None:
                    harder()
        self._errors.close()

    def __enter__(self) -> ModelProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _tell(self, message: Message) -> None:
        try:
            send(self._channel, message)
        except (ChannelClosed, TimeoutError) as error:
            raise ChildFailed(self._post_mortem("does not take messages")) from error

    def _answer(self, kind: str, timeout: float) -> Message:
        try:
            message = receive(self._channel, timeout)
        except TimeoutError as error:
            raise ChildFailed(self._post_mortem(f"gave no answer within {timeout:g} s")) from error
        except ChannelClosed as error:
            raise ChildFailed(self._post_mortem("died")) from error
        except GarbledMessage as error:
            raise ChildFailed(self._post_mortem(f"sent garbage ({error})")) from error
        if message.kind == "error":
            raise ModelFailed(str(message.fields.get("message", "")), str(message.fields.get("check", "")))
        if message.kind != kind or message.launch != self._launch:
            raise ChildFailed(self._post_mortem(f"answered {message.kind!r} where {kind!r} was due"))
        return message

    def _post_mortem(self, what: str) -> str:
        """What happened, how the child ended, and the last line it wrote."""
        try:
            status = self._child.wait(0.2)
        except subprocess.TimeoutExpired:
            ending = "still running"
        else:
            ending = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 2000))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        return f"The model's process (pid {self._child.pid}) {what} ({ending}){last}"
