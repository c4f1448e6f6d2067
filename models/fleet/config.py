"""The options of the training of a fleet model, as one value that is saved in the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.errors import DataError
from models.training.config import FLEET, TrainingConfig


@dataclass(frozen=True)
class FleetTrainingConfig(TrainingConfig):
    """Like `TrainingConfig`, with defaults for windows of 24 minutes in steps of 5 s, 8 minutes ahead.

    encoder_minimum: minimum number of observed steps that the model needs
    embedding_size:  of the profile
    short:           share of batches with a shorter encoder, of any length from `encoder_minimum`
    unknown:         share of windows that are scaled like those of a server that the model has never seen
    own_scales:      whether each server has its own scale, not that of its profile
    compared_windows: number of windows that the slow baseline, AutoETS, forecasts too
    """

    kind: ClassVar[str] = FLEET

    encoder_length: int = 288
    encoder_minimum: int = 72
    horizon: int = 96
    hidden_size: int = 32
    hidden_continuous_size: int = 8
    attention_heads: int = 1
    dropout: float = 0.0
    embedding_size: int = 4
    epochs: int = 20
    patience: int = 20
    batch_size: int = 16
    batches_per_epoch: int = 100
    learning_rate: float = 5e-3
    short: float = 0.25
    unknown: float = 0.25
    own_scales: bool = True
    compared_windows: int = 48

    def check(self) -> None:
        """See `TrainingConfig.check`."""
        if not 2 <= self.encoder_minimum <= self.encoder_length:
            raise DataError(
                f"--encoder-minimum must be from 2 to the encoder length, {self.encoder_length}, not {self.encoder_minimum}."
            )
        if not 1 <= self.embedding_size <= self.hidden_size:
            raise DataError(
                f"The embedding of a profile must have 1 to {self.hidden_size} numbers, not {self.embedding_size}."
            )
        if not (0 <= self.short <= 1 and 0 <= self.unknown <= 1 and self.compared_windows >= 0):
            raise DataError("The shares of short encoders and of unknown servers must be from 0 to 1.")
        super().check()
