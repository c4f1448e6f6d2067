"""How far a training is, in one count over all it does: imports, batches, scoring, writing.

The unit is a batch of the fit; everything else is given a size beside it. The count never goes back within one process, so
that whoever watches it can tell a training that gets on from one that does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_STAGE_SIZES = {"start": 5, "write": 1}  # steps, each about as long as a batch
_SCORE_STEPS = 3  # the export, the engine held against the network, the baselines


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is. `stage` is start, fit, score or write; a loss is None where none is known yet.

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
    """Counts the work of one training, and reports it.

    `batches`: of an epoch; `checks`: batches of each validation; `scored`: how many batches the scoring comes to.
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
        """So many units of a stage are done."""
        self._publish(TrainingProgress(stage), self._stage_starts[stage] + done)

    def report_scoring(self, done: float) -> None:
        """So many batches of windows are scored."""
        self.report_stage("score", _SCORE_STEPS + done)

    def report_fit(
        self, epoch: int, batch: int, *, checked: int = 0, loss: float | None = None, validation: float | None = None
    ) -> None:
        """An epoch, counted from 1, has come to this batch, or to this batch of its validation; or it has a loss."""
        done = (epoch - 1) * (self._train_batches + self._validation_batches) + batch + checked
        progress = TrainingProgress("fit", epoch, self._epochs, batch, self._train_batches, loss, validation)
        self._publish(progress, self._stage_starts["fit"] + done)

    def _publish(self, progress: TrainingProgress, done: float) -> None:
        self._done = max(self._done, min(done, self._total))
        self._callback(TrainingProgress(**{**vars(progress), "done": self._done, "total": self._total}))
