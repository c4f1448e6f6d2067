"""A training run: the request that the parent makes, and its runner in the child.

Rows, options and checkpoints are on disk, in the state directory that the parent has prepared and locked
(`models.training.state`). The channel carries only its path and the progress, so a job of any size costs a few bytes, and a
replacement child resumes from the last checkpoint.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forecastd.inference.runner import ProgressReport, Runner, RunnerResult
from forecastd.runtime.jobs import InvalidResult, JobRequest, ModelFailed
from forecastd.supervise.detector import Phase
from forecastd.supervise.protocol import ChildMessage
from models.errors import BundleError, DataError, TrainingDiverged, TrainingInterrupted
from models.train import run_training
from models.training import state
from models.training.progress import TrainingProgress

_INTEGERS = ("epoch", "epochs", "batch", "batches")
_LOSSES = ("loss", "validation_loss")


def training_request(out: Path, *, created: float, force: bool, finish: bool) -> JobRequest:
    """Run the prepared training of `out` to its end. The job's value is the bundle's sha256."""
    fields = {"out": str(out.absolute()), "created": created, "force": force, "finish": finish}
    return JobRequest("training", out.name, fields, _read_sha256)


def _read_sha256(fields: Mapping[str, Any]) -> str:
    sha256 = fields.get("bundle_sha256")
    if not isinstance(sha256, str) or not sha256:
        raise InvalidResult("the bundle's sha256 is missing")
    return sha256


class TrainingRunner(Runner):
    """Trains one bundle. A failure that every other child would meet too ends the job."""

    def run(self, job: ChildMessage, report: ProgressReport) -> RunnerResult:
        def report_progress(progress: TrainingProgress) -> None:
            report(Phase.TRAINING, progress.done, progress.total, asdict(progress))

        try:
            with _interruptible():
                manifest = run_training(
                    Path(job.text("out")),
                    report_progress,
                    created=job.number("created"),
                    force=job.fields.get("force") is True,
                    finish=job.fields.get("finish") is True,
                )
        except (KeyboardInterrupt, TrainingInterrupted):
            raise ModelFailed("The training was interrupted.", "interrupted") from None
        except BundleError as error:
            raise ModelFailed(str(error.args[0]), "output", error.check) from error
        except OSError as error:
            raise ModelFailed(error.strerror or str(error), "disk", str(error.errno or 0)) from error
        return RunnerResult({"bundle_sha256": manifest.sha256})


def error_from_child(error: ModelFailed, out: Path) -> Exception:
    """The child's error as the exception that a training run in this process would have raised."""
    text = str(error)
    if error.kind == "interrupted":
        return state.interrupted(out)
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
