"""A training run as a job for a child: messages of both sides.

Rows, options and checkpoints are on disk, in the state directory that the parent has prepared and locked
(`models.training.state`). The channel carries only its path and the progress, so a job of any size costs a few bytes, and a
replacement child resumes from the last checkpoint.
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
from models.train import run_training
from models.training import state
from models.training.progress import TrainingProgress

ProgressReport = Callable[[float, float, dict[str, object]], None]  # done, total, all fields of the progress

_INTEGERS = ("epoch", "epochs", "batch", "batches")
_LOSSES = ("loss", "validation_loss")


def train_job(out: Path, *, created: float, force: bool, finish: bool, attempts: int) -> Job:
    """Run the prepared training of `out` to its end, without a deadline. The job's value is the bundle's sha256."""
    fields = {"out": str(out.absolute()), "created": created, "force": force, "finish": finish}
    return Job("train", f"training of {out.name}", inf, attempts, _read_sha256, fields)


def _read_sha256(message: ChildMessage) -> str:
    try:
        sha256 = message.text("bundle_sha256")
    except InvalidMessage as error:
        raise InvalidResult(f"a field is missing or invalid: {error}") from error
    if not sha256:
        raise InvalidResult("the bundle's sha256 is missing")
    return sha256


def train_in_child(message: ChildMessage, report: ProgressReport) -> tuple[str, dict[str, object]]:
    """Run a `train` job in the child; return the kind and the fields of its result message.

    A failure that every other child would meet too becomes an error message, which ends the job.
    """

    def report_progress(progress: TrainingProgress) -> None:
        report(progress.done, progress.total, asdict(progress))

    try:
        with _interruptible():
            manifest = run_training(
                Path(message.text("out")),
                report_progress,
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
    """The child's error as the exception that a training run in this process would have raised."""
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
    """The progress that a child reported; None when it is absent or invalid, as a child's data is not trusted."""
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
    """Unblock SIGINT, also one that is already pending; ignore it afterwards, when the work is done."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
