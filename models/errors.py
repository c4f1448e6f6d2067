"""Errors of models. Every message names the cause and what to do."""

from __future__ import annotations

from pathlib import Path


class ModelError(Exception):
    """The model cannot be used."""


class BundleError(ModelError):
    """The bundle is missing, damaged, of another kind, or does not reproduce its canary.

    `check` is the stable name of the check that failed, and part of the text: missing, pickle, schema, hash, weights,
    finite, canary, features, exists, busy.
    """

    def __init__(self, message: str, *, check: str) -> None:
        super().__init__(message)
        self.check = check

    def __str__(self) -> str:
        return f"{self.args[0]} (check: {self.check})"


class DataError(ModelError):
    """The data is unusable: too short, not finite, or of the wrong shape."""


class TrainingDiverged(DataError):
    """The training diverged: its weights are not finite. Lower --learning-rate."""

    def __init__(self) -> None:
        super().__init__(type(self).__doc__)


class TrainingInterrupted(ModelError):
    """The training was interrupted. `has_checkpoint`: a checkpoint of at least one whole epoch is in `work`."""

    def __init__(self, work: Path, *, has_checkpoint: bool) -> None:
        progress = "Best checkpoint kept" if has_checkpoint else "No epoch was finished yet, so there is no checkpoint"
        super().__init__(f"Interrupted. {progress}; run the same command again to resume.")
        self.work = work
        self.has_checkpoint = has_checkpoint
