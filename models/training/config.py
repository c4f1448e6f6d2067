"""The options of a training run, as one value that is saved in the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)


@dataclass(frozen=True)
class TrainingConfig:
    """The options of a training run. The defaults fit topic 67: hourly candles, 168 h ahead.

    `batches_per_epoch` limits an epoch, because consecutive windows overlap almost completely. `scored_windows`
    limits, for the same reason, the scored windows of the validation and of the test part. `patience`: epochs without
    improvement until the training stops. `accelerator` is Lightning's name of a device: auto, cpu, gpu.
    """

    kind: ClassVar[str] = "market"

    name: str = "model"
    encoder_length: int = 336
    horizon: int = 168
    hidden_size: int = 16
    hidden_continuous_size: int = 8
    attention_heads: int = 4
    lstm_layers: int = 1
    dropout: float = 0.1
    levels: tuple[float, ...] = LEVELS
    epochs: int = 30
    patience: int = 5
    batch_size: int = 64
    batches_per_epoch: int = 50
    learning_rate: float = 1e-3
    seed: int = 0
    accelerator: str = "auto"
    validation: float = 0.15
    test: float = 0.15
    scored_windows: int = 512
