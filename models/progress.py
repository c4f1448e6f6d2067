"""How far a training is, in one count over all it does: imports, batches, scoring, writing.

The unit is a batch of the fit; everything else is given a size beside it. The count never goes back within one process, so
that whoever watches it can tell a training that gets on from one that does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_SIZES = {"start": 5, "write": 1}  # steps, each about as long as a batch
_SCORE_STEPS = 3  # the export, the engine held against the network, the baselines


@dataclass(frozen=True)
class Progress:
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


class Meter:
    """Counts the work of one training, and reports it.

    `batches`: of an epoch; `checks`: batches of each validation; `scored`: how many batches the scoring comes to.
    """

    def __init__(
        self, report: Callable[[Progress], None], *, epochs: int, batches: int, checks: int, scored: int
    ) -> None:
        self._report = report
        self._epochs, self._batches, self._checks = epochs, batches, checks
        sizes = {**_SIZES, "fit": epochs * (batches + checks), "score": _SCORE_STEPS + scored}
        order = ("start", "fit", "score", "write")
        self._begin = {stage: float(sum(sizes[one] for one in order[:at])) for at, stage in enumerate(order)}
        self._total = float(sum(sizes.values()))
        self._done = 0.0

    def step(self, stage: str, done: float) -> None:
        """So many units of a stage are done."""
        self._tell(Progress(stage), self._begin[stage] + done)

    def scored(self, done: float) -> None:
        """So many batches of windows are scored."""
        self.step("score", _SCORE_STEPS + done)

    def fitted(
        self, epoch: int, batch: int, *, checked: int = 0, loss: float | None = None, validation: float | None = None
    ) -> None:
        """An epoch, counted from 1, has come to this batch, or to this batch of its validation; or it has a loss."""
        done = (epoch - 1) * (self._batches + self._checks) + batch + checked
        reached = Progress("fit", epoch, self._epochs, batch, self._batches, loss, validation)
        self._tell(reached, self._begin["fit"] + done)

    def _tell(self, reached: Progress, done: float) -> None:
        self._done = max(self._done, min(done, self._total))
        self._report(Progress(**{**vars(reached), "done": self._done, "total": self._total}))
