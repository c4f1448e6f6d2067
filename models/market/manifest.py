"""The manifest of a market bundle: the features of one series, and the scalers that were fitted to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from models.bundle.fields import StrictFields, refuse
from models.bundle.manifest import Manifest
from models.bundle.records import FLEET_KIND, MARKET_KIND
from models.tft.config import RELATIVE_TIME, TftConfig, read_network

TARGET = "log_close"
NORMALIZER = "last-value"


@dataclass(frozen=True)
class Scaler:
    """The network reads a feature as `(value - center) / scale`; fitted on the train part only."""

    center: float
    scale: float


@dataclass(frozen=True, kw_only=True)
class MarketManifest(Manifest):
    """The manifest of a market bundle. `past`, `known`: the features, in the order of the model's input."""

    KIND = MARKET_KIND
    FIELDS = (
        "schema", "kind", "name", "features", "scalers", "encoders", "target", "step", "encoder_length", "horizon", "levels",
        "network", "training", "versions", "metrics", "files",
    )  # fmt: skip
    SCORES = "metrics"

    past: tuple[str, ...]
    known: tuple[str, ...]
    scalers: Mapping[str, Scaler]
    network: TftConfig

    @classmethod
    def refuse_kind(cls, kind: str) -> NoReturn:
        """See `Manifest.refuse_kind`."""
        if kind == FLEET_KIND:
            refuse(
                "is of a fleet model, not of a market model",
                "Run it with `forecastd fleet serve --model`, or choose another model.",
            )
        refuse(f"is of kind {kind!r}; this version runs {MARKET_KIND!r} only", "Use the version that wrote it.")

    @classmethod
    def read_own(cls, root: StrictFields) -> dict[str, Any]:
        """See `Manifest.read_own`."""
        features = root.child("features")
        past, known = features.names("past"), features.names("known")
        features.expect_empty()
        names = (*past, *known)
        if len(set(names) | {TARGET, RELATIVE_TIME}) != len(names) + 2:
            refuse("has a feature twice, or one with the name of the target")
        target = root.child("target")
        target.take("description", str)
        if target.take("name", str) != TARGET or target.take("normalizer", str) != NORMALIZER:
            refuse(f"has another target than {TARGET} with the {NORMALIZER} normalizer")
        target.expect_empty()
        root.child("encoders").expect_empty()
        scalers = _read_scalers(root.child("scalers"), names)
        return {"past": past, "known": known, "scalers": scalers, "network": read_network(root, has_profile=False)}

    def own_json(self) -> dict[str, object]:
        """See `Manifest.own_json`."""
        return {
            "features": {"past": self.past, "known": self.known},
            "scalers": {name: vars(scaler) for name, scaler in self.scalers.items()},
            "encoders": {},
            "target": {
                "name": TARGET,
                "description": "natural logarithm of the closing price; the forecast is the log-return from the last close",
                "normalizer": NORMALIZER,
            },
            "network": self.network.to_json(),
        }

    def check(self) -> None:
        """See `Manifest.check`."""
        encoder, decoder = network_reals(self.past, self.known)
        expected = replace(self.network, encoder_reals=encoder, decoder_reals=decoder, outputs=len(self.levels))
        if self.network != expected:
            refuse("has a network whose variables or outputs differ from its features and levels")


def network_reals(past: tuple[str, ...], known: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The variables of the network's encoder and decoder, in the order pytorch_forecasting gives them."""
    decoder = (*known, RELATIVE_TIME)
    return (*decoder, *past, TARGET), decoder


def _read_scalers(scalers: StrictFields, features: tuple[str, ...]) -> Mapping[str, Scaler]:
    result = {}
    for name in features:
        scaler = scalers.child(name)
        result[name] = Scaler(center=scaler.number("center"), scale=scaler.number("scale"))
        scaler.expect_empty()
        if result[name].scale <= 0:
            refuse(f"must have a scale above 0 at scalers.{name}")
    scalers.expect_empty()
    return result
