"""Sizes and variables of a Temporal Fusion Transformer."""

from __future__ import annotations

from dataclasses import dataclass

from models.bundle.fields import StrictFields
from models.bundle.records import MAX_LEVELS

PROFILE = "profile"  # the static variable, as the network names it
RELATIVE_TIME = "relative_time_idx"  # the library's name of the position in the window, divided by the encoder length
MAX_SIZES = {  # the largest sizes that a manifest may have
    "encoder_length": 100_000, "horizon": 100_000, "hidden_size": 4096, "hidden_continuous_size": 4096,
    "attention_heads": 256, "lstm_layers": 16, "levels": MAX_LEVELS,
}  # fmt: skip


@dataclass(frozen=True)
class TftConfig:
    """The sizes of a Temporal Fusion Transformer and its variables, in the order the network reads them.

    `outputs`: of each target. `profiles`, `embedding_size`: how many values the static profile has, and how many
    numbers embed one; 0 for a network without a profile.
    """

    hidden_size: int
    hidden_continuous_size: int
    attention_heads: int
    lstm_layers: int
    encoder_reals: tuple[str, ...]
    decoder_reals: tuple[str, ...]
    outputs: int
    targets: int = 1
    profiles: int = 0
    embedding_size: int = 0


def read_network_sizes(network: StrictFields) -> TftConfig:
    """The sizes and variables that every network has, from the field `network` of a manifest.

    Raises:
        BundleError: (check "schema") a field is missing or out of its bounds.
    """
    return TftConfig(
        hidden_size=network.integer("hidden_size", 1, MAX_SIZES["hidden_size"]),
        hidden_continuous_size=network.integer("hidden_continuous_size", 1, MAX_SIZES["hidden_continuous_size"]),
        attention_heads=network.integer("attention_heads", 1, MAX_SIZES["attention_heads"]),
        lstm_layers=network.integer("lstm_layers", 1, MAX_SIZES["lstm_layers"]),
        encoder_reals=network.names("encoder_reals"),
        decoder_reals=network.names("decoder_reals"),
        outputs=network.integer("outputs", 1, MAX_SIZES["levels"]),
    )
