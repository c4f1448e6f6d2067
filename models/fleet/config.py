"""The options of the training of a fleet model, as one value that is saved in the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.training.config import TrainingConfig


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

    kind: ClassVar[str] = "fleet"

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
