"""Every choice of a fleet's training, as one value that is saved with what it made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.training.config import TrainingConfig


@dataclass(frozen=True)
class FleetTrainingConfig(TrainingConfig):
    """As `TrainingConfig`, with defaults for windows of 24 minutes in steps of 5 s, 8 minutes ahead.

    encoder_minimum: with how few observed steps the model shall be of use
    embedding_size:  of the profile
    short:           the share of batches with a shorter encoder, of any length from `encoder_minimum` on
    unknown:         the share of windows that are scaled as those of a server which the model has never seen
    own_scales:      whether servers have scales of their own; else those of their profiles
    compared_windows: how many windows are forecast by the slow baseline too
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
