"""The terminal output of a training run: a progress bar of batches, then the scores next to those of the baselines.

Without a terminal, it prints one line per epoch instead of the bar.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from cli.rows import console, row
from models.training.progress import TrainingProgress


class TrainingScreen:
    """Shows the progress of a training run of any kind. With `quiet`, stdout is reserved for one JSON object.

    The log lines of supervision are shown with `verbose`; otherwise a replaced process is one line on stderr.
    """

    def __init__(self, *, quiet: bool, verbose: bool = False) -> None:
        self._quiet, self._verbose = quiet, verbose
        self._supervision = logging.getLogger("forecastd.supervise")
        self._level = self._supervision.level
        self._scoring = False
        self._out = console()
        self._errors = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._best: float | None = None

    def __enter__(self) -> TrainingScreen:
        if not self._verbose:
            self._supervision.setLevel(logging.CRITICAL)
        if not self._quiet and self._errors.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(compact=True),
                console=self._errors,
                transient=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._supervision.setLevel(self._level)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.stop()

    def show_data(self, text: str) -> None:
        """Print a sentence about the data."""
        if not self._quiet:
            self._out.print(row("data", Text(text)))

    def show_warning(self, text: str) -> None:
        """Print a sentence about a replaced process: above the bar, and never on stdout."""
        (self._bar.console if self._bar is not None else self._errors).print(row("training", Text(text)))

    def update(self, progress: TrainingProgress) -> None:
        """Show the progress."""
        if progress.validation_loss is not None:
            self._best = min(progress.validation_loss, self._best or progress.validation_loss)
        if self._quiet:
            return
        if self._bar is not None and progress.stage == "fit":
            self._advance(self._bar, progress)
        elif progress.validation_loss is not None:
            text = f"epoch {progress.epoch}: validation loss {progress.validation_loss:.4f}, best {self._best:.4f}"
            self._out.print(row("training", Text(text)))
        elif progress.stage == "score" and not self._scoring:
            self._scoring = True
            self.close()
            self._out.print(row("scoring", Text("on data that the training has not seen")))

    def _advance(self, bar: Progress, progress: TrainingProgress) -> None:
        if self._task is None:
            bar.start()
            self._task = bar.add_task("", loss="")
        best = "" if self._best is None else f"best {self._best:.4f}"
        loss = "" if progress.loss is None else f"loss {progress.loss:.4f} "
        bar.update(
            self._task,
            description=f"epoch {progress.epoch}/{progress.epochs}",
            total=progress.epochs * progress.batches,
            completed=(progress.epoch - 1) * progress.batches + progress.batch,
            loss=loss + best,
        )

    def show_result(
        self, manifest: bytes, scores: Iterable[RenderableType], path: Path, sha256: str, next_command: str
    ) -> None:
        """Print the manifest (JSON) if `quiet`; otherwise the scores, the bundle's path and the next command."""
        if self._quiet:
            click.echo(manifest.decode(), nl=False)
            return
        for line in scores:
            self._out.print(line)
        self._out.print(row("bundle", Text(f"{path} ({sha256[:12]})")))
        self._out.print(row("next", Text(next_command)))
