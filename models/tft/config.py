"""Sizes and variables of a Temporal Fusion Transformer."""

from __future__ import annotations

from dataclasses import dataclass

from models.bundle.fields import StrictFields, refuse
from models.bundle.records import MAX_SIZES

PROFILE = "profile"  # the static variable, as the network names it
RELATIVE_TIME = "relative_time_idx"  # the library's name of the position in the window, divided by the encoder length
MAX_TARGETS, MAX_PROFILES = 256, 1000
_MAX_OWN_SIZES = {
    **{name: MAX_SIZES[name] for name in ("hidden_size", "hidden_continuous_size", "attention_heads", "lstm_layers")},
    "outputs": MAX_SIZES["levels"],
}
_MAX_PROFILE_SIZES = {"targets": MAX_TARGETS, "profiles": MAX_PROFILES, "embedding_size": MAX_SIZES["hidden_size"]}


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

    def to_json(self) -> dict[str, object]:
        """The field `network` of a manifest. Without a profile there is one target, and neither is written."""
        return {name: value for name, value in vars(self).items() if self.profiles or name not in _MAX_PROFILE_SIZES}


def read_network(root: StrictFields, *, has_profile: bool) -> TftConfig:
    """Read the field `network` of a manifest.

    Raises:
        BundleError: (check "schema") a field is missing, unknown or out of its bounds.
    """
    fields = root.child("network")
    max_sizes = {**_MAX_OWN_SIZES, **(_MAX_PROFILE_SIZES if has_profile else {})}
    sizes = {name: fields.integer(name, 1, maximum) for name, maximum in max_sizes.items()}
    network = TftConfig(
        encoder_reals=fields.names("encoder_reals"), decoder_reals=fields.names("decoder_reals"), **sizes
    )
    fields.expect_empty()
    if network.attention_heads > network.hidden_size or network.embedding_size > network.hidden_size:
        refuse("has more attention heads, or a larger embedding, than hidden units")
    return network
