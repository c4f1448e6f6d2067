"""The options of a training run, as one value that is saved in the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from models.bundle.records import MAX_SIZES
from models.errors import DataError
from models.tft.config import TftConfig

MARKET, FLEET = "market", "fleet"  # names of kinds; they are written in the state of an unfinished training run
LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)

_MIN_SIZES = {  # the largest values are those that a manifest may have (`MAX_SIZES`), or that fit 32 bits
    "encoder_length": 2, "horizon": 1, "hidden_size": 1, "hidden_continuous_size": 1, "attention_heads": 1,
    "lstm_layers": 1, "epochs": 1, "patience": 1, "batch_size": 1, "batches_per_epoch": 1, "scored_windows": 1, "seed": 0,
}  # fmt: skip


@dataclass(frozen=True)
class TrainingConfig:
    """The options of a training run. The defaults fit topic 67: hourly candles, 168 h ahead.

    `batches_per_epoch` limits an epoch, because consecutive windows overlap almost completely. `scored_windows`
    limits, for the same reason, the scored windows of the validation and of the test part. `patience`: epochs without
    improvement until the training stops. `accelerator` is Lightning's name of a device: auto, cpu, gpu.
    """

    kind: ClassVar[str] = MARKET

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

    def check(self) -> None:
        """Refuse options that make no sense.

        Raises:
            DataError: it names the option.
        """
        for name, minimum in _MIN_SIZES.items():
            value, maximum = getattr(self, name), MAX_SIZES.get(name, 2**32 - 1)
            if not minimum <= value <= maximum:
                option = name.removeprefix("attention_").replace("_", "-")
                raise DataError(f"--{option} must be from {minimum} to {maximum}, not {value}.")
        if self.attention_heads > self.hidden_size:
            raise DataError(f"{self.attention_heads} attention heads need a hidden size of at least as many.")
        if not 0 <= self.dropout < 1:
            raise DataError(f"--dropout must be from 0 to below 1, not {self.dropout}.")
        if not 0 < self.learning_rate <= 1:
            raise DataError(f"--learning-rate must be above 0 and at most 1, not {self.learning_rate}.")
        if not min(self.validation, self.test, 1 - self.validation - self.test) > 0:
            raise DataError("The shares of validation and test must be above 0 and leave rows to train on.")
        levels, maximum = self.levels, MAX_SIZES["levels"]
        valid = all(0 < level < 1 for level in levels) and len(levels) <= maximum
        if not valid or list(levels) != sorted(set(levels)) or 0.5 not in levels:
            raise DataError(
                f"--levels must be at most {maximum} increasing probabilities between 0 and 1 that include 0.5, not "
                f"{', '.join(f'{level:g}' for level in levels)}."
            )

    def make_network(self, reals: tuple[tuple[str, ...], tuple[str, ...]], **more: Any) -> TftConfig:
        """The network of these sizes for the variables of the encoder and the decoder; `more`: its other fields."""
        return TftConfig(
            self.hidden_size, self.hidden_continuous_size, self.attention_heads, self.lstm_layers, *reals,
            outputs=len(self.levels), **more,
        )  # fmt: skip
