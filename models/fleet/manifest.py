"""The manifest of a fleet bundle: one network for all metrics of all servers, which have profiles and scales by group.

Invariant: as for a market, a manifest is either completely valid or not used. A group is a name with a row in the
tables of centers and scales: `server:web-01`, `profile:web`, or `default` for all other servers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from models.bundle.fields import StrictFields, check_name, parse_object, refuse
from models.bundle.records import (
    FLEET_KIND,
    MAX_STEP_SECONDS,
    FileRecord,
    TrainingRecord,
    files_json,
    read_files,
    read_levels,
    read_training,
    training_json,
)
from models.tft.config import MAX_SIZES, RELATIVE_TIME, TftConfig, read_network_sizes

SCHEMA = 1
NORMALIZER = "group"  # pytorch_forecasting's GroupNormalizer: center and scale of a group, fixed by the training
CYCLE_SECONDS = {"hour": 3600, "day": 86_400, "week": 604_800}  # the variables are `<name>_sin` and `<name>_cos`
OTHER_PROFILE = "other"  # of servers whose profile was not in the training; always the first
DEFAULT_GROUP = "default"  # the group of servers with such a profile
MAX_METRICS, MAX_PROFILES, MAX_GROUPS = 256, 1000, 20_000

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


@dataclass(frozen=True)
class FleetManifest:
    """The manifest of a fleet bundle. `step` in seconds; `encoder_minimum`: minimum number of observed steps.

    `cycles`: the keys of `CYCLE_SECONDS` that are inputs; `profiles`: `OTHER_PROFILE` first; `scores`: of the
    evaluation. `anchors`: for each metric, what the network's outputs are added to; empty if the outputs are scaled
    metrics.
    """

    name: str
    metrics: tuple[ModelMetric, ...]
    cycles: tuple[str, ...]
    profiles: tuple[str, ...]
    groups: tuple[str, ...]
    step: int
    encoder_length: int
    encoder_minimum: int
    horizon: int
    levels: tuple[float, ...]
    network: TftConfig
    training: TrainingRecord
    versions: Mapping[str, str]
    scores: Mapping[str, object]
    files: Mapping[str, FileRecord]
    anchors: tuple[Anchor, ...] = ()
    sha256: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics' names, in the network's order."""
        return tuple(metric.name for metric in self.metrics)

    @property
    def known(self) -> tuple[str, ...]:
        """The variables that are known for the future too, in the network's order."""
        return known_reals(self.cycles)


def known_reals(cycles: tuple[str, ...]) -> tuple[str, ...]:
    """The calendar variables."""
    return tuple(f"{cycle}_{wave}" for cycle in cycles for wave in ("sin", "cos"))


def fleet_reals(metrics: tuple[str, ...], cycles: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The variables of the network's encoder and decoder, in the order pytorch_forecasting gives them.

    Only the decoder has the relative time, so the variable selection of a past step never changes and can be cached.
    """
    known = known_reals(cycles)
    return (*known, *metrics), (*known, RELATIVE_TIME)


def to_json(manifest: FleetManifest) -> bytes:
    """The bytes of `manifest.json`, without `sha256`, which is their hash."""
    document = {
        "schema": SCHEMA,
        "kind": FLEET_KIND,
        "name": manifest.name,
        "metrics": [vars(metric) for metric in manifest.metrics],
        "normalizer": NORMALIZER,
        "anchors": [vars(anchor) for anchor in manifest.anchors],
        "cycles": manifest.cycles,
        "profiles": manifest.profiles,
        "groups": manifest.groups,
        "step": manifest.step,
        "encoder_length": manifest.encoder_length,
        "encoder_minimum": manifest.encoder_minimum,
        "horizon": manifest.horizon,
        "levels": manifest.levels,
        "network": vars(manifest.network),
        "training": training_json(manifest.training),
        "versions": dict(manifest.versions),
        "scores": manifest.scores,
        "files": files_json(manifest.files),
    }
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def parse(content: bytes, sha256: str) -> FleetManifest:
    """Read the bytes of `manifest.json`.

    Raises:
        BundleError: (check "schema") not JSON, of another kind, or a field is not valid; the message names it.
    """
    root = parse_object(content)
    if (schema := root.take("schema", int)) != SCHEMA:
        refuse(f"has schema {schema}; this version reads schema {SCHEMA}", "Use the version that wrote it.")
    if (kind := root.take("kind", str)) != FLEET_KIND:
        refuse(f"is of kind {kind!r}, not {FLEET_KIND!r}", "Use a model that `forecastd fleet train` wrote.")
    if root.take("normalizer", str) != NORMALIZER:
        refuse(f"has another normalizer than {NORMALIZER}")
    metrics, cycles, profiles = _metrics(root), root.names("cycles"), root.names("profiles")
    if not set(cycles) <= CYCLE_SECONDS.keys() or len(set(cycles)) != len(cycles):
        refuse("has cycles that are not in the calendar")
    if len(set(profiles)) != len(profiles) or profiles[:1] != (OTHER_PROFILE,) or len(profiles) > MAX_PROFILES:
        refuse(f"must have distinct profiles, {OTHER_PROFILE} first")
    encoder_length = root.integer("encoder_length", 2, MAX_SIZES["encoder_length"])
    levels = read_levels(root)
    manifest = FleetManifest(
        name=check_name(root.take("name", str), "name"),
        metrics=metrics,
        cycles=cycles,
        profiles=profiles,
        groups=_groups(root),
        step=root.integer("step", 1, MAX_STEP_SECONDS),
        encoder_length=encoder_length,
        encoder_minimum=root.integer("encoder_minimum", 2, encoder_length),
        horizon=root.integer("horizon", 1, MAX_SIZES["horizon"]),
        levels=levels,
        network=_network(root.child("network")),
        training=read_training(root.child("training")),
        versions=root.child("versions").strings(),
        scores=root.mapping("scores"),
        files=read_files(root.child("files")),
        anchors=_anchors(root, len(metrics)),
        sha256=sha256,
    )
    root.expect_empty()
    _check_network(manifest)
    return manifest


def _metrics(root: StrictFields) -> tuple[ModelMetric, ...]:
    metrics = []
    for index, item in enumerate(root.take("metrics", list)):
        fields = StrictFields(item, f"metrics.{index}")
        metric = ModelMetric(
            name=check_name(fields.take("name", str), f"metrics.{index}.name"),
            unit=fields.take("unit", str),
            low=fields.number("low"),
            high=fields.number("high"),
            transform="log1p" if (transform := fields.take("transform", str)) == "log1p" else "none",
        )
        fields.expect_empty()
        if transform not in {"none", "log1p"} or metric.low >= metric.high or (transform == "log1p" and metric.low < 0):
            refuse(f"has an invalid metric at metrics.{index}")
        metrics.append(metric)
    names = {metric.name for metric in metrics}
    if not 0 < len(names) == len(metrics) <= MAX_METRICS or names & {*known_reals(tuple(CYCLE_SECONDS)), RELATIVE_TIME}:
        refuse("must have distinct metrics, none with the name of a calendar variable")
    return tuple(metrics)


def _anchors(root: StrictFields, metrics: int) -> tuple[Anchor, ...]:
    anchors = []
    for index, item in enumerate(root.take("anchors", list)):
        fields = StrictFields(item, f"anchors.{index}")
        anchor = Anchor(fields.number("smoothing"), fields.number("damping"))
        fields.expect_empty()
        if not (0 < anchor.smoothing <= 1 and 0 <= anchor.damping <= 1):
            refuse(f"has an invalid anchor at anchors.{index}")
        anchors.append(anchor)
    if len(anchors) not in {0, metrics}:
        refuse("must have an anchor for each metric, or none")
    return tuple(anchors)


def _groups(root: StrictFields) -> tuple[str, ...]:
    groups = root.take("groups", list)
    if not all(isinstance(group, str) and _GROUP.fullmatch(group) for group in groups):
        refuse("must have groups named server:NAME, profile:NAME or default")
    if len(set(groups)) != len(groups) or DEFAULT_GROUP not in groups or len(groups) > MAX_GROUPS:
        refuse("must have distinct groups that include default")
    return tuple(groups)


def _network(network: StrictFields) -> TftConfig:
    sizes = replace(
        read_network_sizes(network),
        targets=network.integer("targets", 1, MAX_METRICS),
        profiles=network.integer("profiles", 1, MAX_PROFILES),
        embedding_size=network.integer("embedding_size", 1, MAX_SIZES["hidden_size"]),
    )
    network.expect_empty()
    return sizes


def _check_network(manifest: FleetManifest) -> None:
    network = manifest.network
    sizes = network.outputs, network.targets, network.profiles
    if (network.encoder_reals, network.decoder_reals) != fleet_reals(manifest.names, manifest.cycles) or sizes != (
        len(manifest.levels), len(manifest.metrics), len(manifest.profiles),
    ):  # fmt: skip
        refuse("has a network whose variables, targets or profiles differ from its metrics, levels and profiles")
    if network.attention_heads > network.hidden_size or network.embedding_size > network.hidden_size:
        refuse("has more attention heads, or a larger embedding, than hidden units")
