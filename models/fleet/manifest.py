"""The manifest of a fleet bundle: one network for all metrics of all servers, which have profiles and scales by group.

A group is a name with a row in the tables of centers and scales: `server:web-01`, `profile:web`, or `default` for all
other servers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

from models.bundle.fields import StrictFields, check_name, refuse
from models.bundle.manifest import Manifest
from models.bundle.records import FLEET_KIND, MAX_SIZES
from models.tft.config import MAX_PROFILES, MAX_TARGETS, RELATIVE_TIME, TftConfig, read_network

NORMALIZER = "group"  # pytorch_forecasting's GroupNormalizer: center and scale of a group, fixed by the training
CYCLE_SECONDS = {"hour": 3600, "day": 86_400, "week": 604_800}  # the variables are `<name>_sin` and `<name>_cos`
OTHER_PROFILE = "other"  # of servers whose profile was not in the training; always the first
DEFAULT_GROUP = "default"  # the group of servers with such a profile
MAX_GROUPS = 20_000

Transform = Literal["none", "log1p"]
_GROUP = re.compile(r"default|(?:server|profile):[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


@dataclass(frozen=True)
class ModelMetric:
    """A metric that the model forecasts: name, unit, bounds, and whether the network reads `log(1 + x)`."""

    name: str
    unit: str
    low: float
    high: float
    transform: Transform


@dataclass(frozen=True)
class Anchor:
    """The forecast that a metric's outputs are added to, see `models.fleet.anchors`.

    smoothing: weight of the newest value in the level of the window, above 0; 1 is the last value
    damping:   share of the distance between last value and level that remains after a step
    """

    smoothing: float
    damping: float


@dataclass(frozen=True, kw_only=True)
class FleetManifest(Manifest):
    """The manifest of a fleet bundle. `encoder_minimum`: minimum number of observed steps.

    `cycles`: the keys of `CYCLE_SECONDS` that are inputs; `profiles`: `OTHER_PROFILE` first. `anchors`: for each metric,
    what the network's outputs are added to; empty if the outputs are scaled metrics.
    """

    KIND = FLEET_KIND
    FIELDS = (
        "schema", "kind", "name", "metrics", "normalizer", "anchors", "cycles", "profiles", "groups", "step",
        "encoder_length", "encoder_minimum", "horizon", "levels", "network", "training", "versions", "scores", "files",
    )  # fmt: skip

    metrics: tuple[ModelMetric, ...]
    cycles: tuple[str, ...]
    profiles: tuple[str, ...]
    groups: tuple[str, ...]
    encoder_minimum: int
    network: TftConfig
    anchors: tuple[Anchor, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics' names, in the network's order."""
        return tuple(metric.name for metric in self.metrics)

    @property
    def known(self) -> tuple[str, ...]:
        """The variables that are known for the future too, in the network's order."""
        return known_reals(self.cycles)

    @classmethod
    def refuse_kind(cls, kind: str) -> NoReturn:
        """See `Manifest.refuse_kind`."""
        refuse(f"is of kind {kind!r}, not {FLEET_KIND!r}", "Use a model that `forecastd fleet train` wrote.")

    @classmethod
    def read_own(cls, root: StrictFields) -> dict[str, Any]:
        """See `Manifest.read_own`."""
        if root.take("normalizer", str) != NORMALIZER:
            refuse(f"has another normalizer than {NORMALIZER}")
        return {
            "metrics": tuple(_read_metric(fields) for fields in root.children("metrics")),
            "cycles": root.names("cycles"),
            "profiles": root.names("profiles"),
            "groups": tuple(root.take("groups", list)),
            "encoder_minimum": root.integer("encoder_minimum", 2, MAX_SIZES["encoder_length"]),
            "network": read_network(root, has_profile=True),
            "anchors": tuple(_read_anchor(fields) for fields in root.children("anchors")),
        }

    def own_json(self) -> dict[str, object]:
        """See `Manifest.own_json`."""
        return {
            "metrics": [vars(metric) for metric in self.metrics],
            "normalizer": NORMALIZER,
            "anchors": [vars(anchor) for anchor in self.anchors],
            "network": self.network.to_json(),
        }

    def check(self) -> None:
        """See `Manifest.check`."""
        names, cycles, profiles, groups = self.names, self.cycles, self.profiles, self.groups
        reserved = {*known_reals(tuple(CYCLE_SECONDS)), RELATIVE_TIME}
        if not 0 < len(set(names)) == len(names) <= MAX_TARGETS or reserved & set(names):
            refuse("must have distinct metrics, none with the name of a calendar variable")
        if not set(cycles) <= CYCLE_SECONDS.keys() or len(set(cycles)) != len(cycles):
            refuse("has cycles that are not in the calendar")
        if len(set(profiles)) != len(profiles) or profiles[:1] != (OTHER_PROFILE,) or len(profiles) > MAX_PROFILES:
            refuse(f"must have distinct profiles, {OTHER_PROFILE} first")
        if not all(isinstance(group, str) and _GROUP.fullmatch(group) for group in groups):
            refuse("must have groups named server:NAME, profile:NAME or default")
        if len(set(groups)) != len(groups) or DEFAULT_GROUP not in groups or len(groups) > MAX_GROUPS:
            refuse("must have distinct groups that include default")
        if self.encoder_minimum > self.encoder_length:
            refuse("has an encoder_minimum above its encoder_length")
        if len(self.anchors) not in {0, len(names)}:
            refuse("must have an anchor for each metric, or none")
        encoder, decoder = fleet_reals(names, cycles)
        sizes = {"outputs": len(self.levels), "targets": len(names), "profiles": len(profiles)}
        if self.network != replace(self.network, encoder_reals=encoder, decoder_reals=decoder, **sizes):
            refuse("has a network whose variables, targets or profiles differ from its metrics, levels and profiles")


def known_reals(cycles: tuple[str, ...]) -> tuple[str, ...]:
    """The calendar variables."""
    return tuple(f"{cycle}_{wave}" for cycle in cycles for wave in ("sin", "cos"))


def fleet_reals(metrics: tuple[str, ...], cycles: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The variables of the network's encoder and decoder, in the order pytorch_forecasting gives them.

    Only the decoder has the relative time, so the variable selection of a past step never changes and can be cached.
    """
    known = known_reals(cycles)
    return (*known, *metrics), (*known, RELATIVE_TIME)


def _read_metric(fields: StrictFields) -> ModelMetric:
    metric = ModelMetric(
        name=check_name(fields.take("name", str), f"{fields.location}.name"),
        unit=fields.take("unit", str),
        low=fields.number("low"),
        high=fields.number("high"),
        transform="log1p" if (transform := fields.take("transform", str)) == "log1p" else "none",
    )
    fields.expect_empty()
    if transform not in {"none", "log1p"} or metric.low >= metric.high or (transform == "log1p" and metric.low < 0):
        refuse(f"has an invalid metric at {fields.location}")
    return metric


def _read_anchor(fields: StrictFields) -> Anchor:
    anchor = Anchor(fields.number("smoothing"), fields.number("damping"))
    fields.expect_empty()
    if not (0 < anchor.smoothing <= 1 and 0 <= anchor.damping <= 1):
        refuse(f"has an invalid anchor at {fields.location}")
    return anchor
