"""A training as a job: what the parent asks, and what the child makes of it.

Rows, options and checkpoints are on disk, in the unfinished training that the parent has begun and holds
(`models.workdir`); over the channel go its place and how far it is. So a job of any size costs a few bytes, and a child
that takes over from another goes on from the last checkpoint.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

from forecastd.supervise.jobs import InvalidResult, Job
from forecastd.supervise.process import ModelFailed
from forecastd.supervise.protocol import ChildMessage, InvalidMessage
from models.errors import BundleError, DataError, TrainingDiverged, TrainingInterrupted
from models.training import state
from models.training.progress import TrainingProgress
from models.training.run import run_training

ProgressReport = Callable[[float, float, dict[str, object]], None]  # done, total, the progress in full

_INTEGERS = ("epoch", "epochs", "batch", "batches")
_LOSSES = ("loss", "validation_loss")


def train_job(out: Path, *, created: float, force: bool, finish: bool, attempts: int) -> Job:
    """Carry on the training of `out`, which has begun, to its end; gives the bundle's sha256. It may take for ever."""
    fields = {"out": str(out.absolute()), "created": created, "force": force, "finish": finish}
    return Job("train", f"training of {out.name}", inf, attempts, _read_sha256, fields)


def _read_sha256(message: ChildMessage) -> str:
    try:
        sha256 = message.text("bundle_sha256")
    except InvalidMessage as error:
        raise InvalidResult(f"its answer lacks or garbles {error}") from error
    if not sha256:
        raise InvalidResult("its answer names no bundle")
    return sha256


def train_in_child(message: ChildMessage, report: ProgressReport) -> tuple[str, dict[str, object]]:
    """The child's side: the kind and the fields of the answer to a `train` message.

    Every failure that another child would meet too is told as an error, which ends the job.
    """

    def tell(progress: TrainingProgress) -> None:
        report(progress.done, progress.total, asdict(progress))

    try:
        with _interruptible():
            manifest = run_training(
                Path(message.text("out")),
                tell,
                created=message.number("created"),
                force=message.fields.get("force") is True,
                finish=message.fields.get("finish") is True,
            )
    except (KeyboardInterrupt, TrainingInterrupted):
        return _error_fields("interrupted", "The training was interrupted.")
    except BundleError as error:
        return _error_fields("output", str(error.args[0]), error.check)
    except DataError as error:
        return _error_fields("data", str(error), type(error).__name__)
    except OSError as error:
        return _error_fields("disk", error.strerror or str(error), str(error.errno or 0))
    return "result", {"bundle_sha256": manifest.sha256}


def _error_fields(error: str, text: str, check: str = "") -> tuple[str, dict[str, object]]:
    return "error", {"error": error, "message": text, "check": check}


def error_from_child(error: ModelFailed, out: Path) -> Exception:
    """What the child told, as the error that a training in this process would have raised."""
    text = str(error)
    if error.kind == "interrupted":
        directory = state.state_directory(out)
        return TrainingInterrupted(directory, has_checkpoint=(directory / state.BEST_CHECKPOINT).exists())
    if error.kind == "output":
        return BundleError(text, check=error.check)
    if error.kind == "disk":
        return OSError(int(error.check) if error.check.isdecimal() else 0, text)
    return TrainingDiverged() if error.check == TrainingDiverged.__name__ else DataError(text)


def parse_progress(detail: Mapping[str, Any]) -> TrainingProgress | None:
    """The progress that a child told, or None where it told none: what comes from a child is not to be trusted."""
    values: dict[str, Any] = {name: detail.get(name) for name in ("stage", *_INTEGERS, *_LOSSES, "done", "total")}
    is_valid = (
        isinstance(values["stage"], str)
        and all(type(values[name]) is int for name in _INTEGERS)
        and all(values[name] is None or isinstance(values[name], float) for name in _LOSSES)
        and all(isinstance(values[name], float) for name in ("done", "total"))
    )
    return TrainingProgress(**values) if is_valid else None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let an interrupt in, one that came before this too; what comes afterwards is too late for anything."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
