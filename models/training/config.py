"""Every choice of a training, as one value that is saved with what it made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)


@dataclass(frozen=True)
class TrainingConfig:
    """Every choice of a training; saved in the manifest. The defaults fit topic 67: hourly candles, 168 h ahead.

    `batches_per_epoch` bounds an epoch, since consecutive windows overlap almost wholly; `scored_windows` bounds, for the
    same reason, how many windows of the validation and of the test part are looked at. `accelerator` is Lightning's name
    of a device: auto, cpu, gpu.
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
