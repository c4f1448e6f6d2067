"""The progress of a training run as one count over all its work: imports, batches, scoring, writing.

The unit is a batch of the fit; other work has a size in that unit.

Invariant: the count never decreases within one process, so that a supervisor can tell progress from a hang.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_STAGE_SIZES = {"start": 5, "write": 1}  # units
_SCORE_STEPS = 3  # units: the export, the comparison of engine and network, the baselines


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a training run. `stage` is start, fit, score or write; a loss is None until it is known.

    `done` of `total`: all the work, stages and epochs together, in units of a batch.
    """

    stage: str
    epoch: int = 0
    epochs: int = 0
    batch: int = 0
    batches: int = 0
    loss: float | None = None
    validation_loss: float | None = None
    done: float = 0.0
    total: float = 0.0


class ProgressMeter:
    """Counts the work of one training run, and reports it.

    `batches`: of an epoch; `validation_batches`: of each validation; `scoring_batches`: of all the scoring.
    """

    def __init__(
        self,
        callback: Callable[[TrainingProgress], None],
        *,
        epochs: int,
        batches: int,
        validation_batches: int,
        scoring_batches: int,
    ) -> None:
        self._callback = callback
        self._epochs, self._train_batches, self._validation_batches = epochs, batches, validation_batches
        sizes = {
            **_STAGE_SIZES,
            "fit": epochs * (batches + validation_batches),
            "score": _SCORE_STEPS + scoring_batches,
        }
        order = ("start", "fit", "score", "write")
        self._stage_starts = {
            stage: float(sum(sizes[name] for name in order[:index])) for index, stage in enumerate(order)
        }
        self._total = float(sum(sizes.values()))
        self._done = 0.0

    def report_stage(self, stage: str, done: float) -> None:
        """Report that `done` units of a stage are done."""
        self._publish(TrainingProgress(stage), self._stage_starts[stage] + done)

    def report_scoring(self, done: float) -> None:
        """Report that `done` batches of windows are scored."""
        self.report_stage("score", _SCORE_STEPS + done)

    def report_fit(
        self,
        epoch: int,
        batch: int,
        *,
        validation_batch: int = 0,
        loss: float | None = None,
        validation_loss: float | None = None,
    ) -> None:
        """Report the last finished batch of an epoch, counted from 1, and of its validation; with the loss, if known."""
        done = (epoch - 1) * (self._train_batches + self._validation_batches) + batch + validation_batch
        progress = TrainingProgress("fit", epoch, self._epochs, batch, self._train_batches, loss, validation_loss)
        self._publish(progress, self._stage_starts["fit"] + done)

    def _publish(self, progress: TrainingProgress, done: float) -> None:
        self._done = max(self._done, min(done, self._total))
        self._callback(TrainingProgress(**{**vars(progress), "done": self._done, "total": self._total}))
