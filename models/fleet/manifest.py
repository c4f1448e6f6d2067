"""The manifest of a fleet's bundle: one network for all metrics of all servers, told apart by profile and scaled by group.

The strictness is that of `models.manifest`: a manifest is either fully understood or not used. A group is a name with a
row in the tables of centers and scales: `server:web-01`, `profile:web`, or `default`, which is the last resort.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from models.manifest import KIND_OF_A_FLEET, LARGEST_STEP, MOST, RELATIVE_TIME, Network, read_sizes
from models.records import FileRecord, Training, files_json, read_files, read_levels, read_training, training_json
from models.strict import Fields, name_of, read_object, refuse

SCHEMA = 1
KIND = KIND_OF_A_FLEET
NORMALIZER = "group"  # pytorch_forecasting's GroupNormalizer: center and scale of a group, fixed by the training
CALENDAR = {
    "hour": 3600,
    "day": 86_400,
    "week": 604_800,
}  # seconds; each cycle is known as `<name>_sin` and `<name>_cos`
OTHER = "other"  # the profile of servers whose own was not among those of the training; always the first
DEFAULT = "default"  # the group of servers of such a profile
MOST_METRICS, MOST_PROFILES, MOST_GROUPS = 256, 1000, 20_000

Transform = Literal["none", "log1p"]
_GROUP = re.compile(r"default|(?:server|profile):[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


@dataclass(frozen=True)
class Metric:
    """What is forecast: a name, its unit, its bounds, and whether the network sees its logarithm, `log(1 + x)`."""

    name: str
    unit: str
    low: float
    high: float
    transform: Transform


@dataclass(frozen=True)
class Anchor:
    """What a metric's outputs are counted from, see `models.fleet.anchors`.

    smoothing: the weight of the newest value in the window's level, above 0; 1 is the last value
    damping:   what is left after a step of the last value's distance to the level
    """

    smoothing: float
    damping: float


@dataclass(frozen=True)
class FleetManifest:
    """A fleet bundle's description. `step` in seconds; `encoder_minimum`: with how few observed steps it may be run.

    `cycles`: those of `CALENDAR` that the network is told of; `profiles` begin with `OTHER`; `scores`: of the evaluation.
    `anchors`: for each metric, what the network's outputs are counted from; none when they are scaled metrics as they are.
    """

    name: str
    metrics: tuple[Metric, ...]
    cycles: tuple[str, ...]
    profiles: tuple[str, ...]
    groups: tuple[str, ...]
    step: int
    encoder_length: int
    encoder_minimum: int
    horizon: int
    levels: tuple[float, ...]
    network: Network
    training: Training
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
        """The variables known for the future too, in the network's order."""
        return known_reals(self.cycles)


def known_reals(cycles: tuple[str, ...]) -> tuple[str, ...]:
    """The calendar's variables."""
    return tuple(f"{cycle}_{wave}" for cycle in cycles for wave in ("sin", "cos"))


def fleet_reals(metrics: tuple[str, ...], cycles: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The variables of the network's encoder and decoder, in the order pytorch_forecasting gives them.

    The relative time is told to the decoder only: so what the variable selection makes of a past step does not change when
    time goes on, and can be kept.
    """
    known = known_reals(cycles)
    return (*known, *metrics), (*known, RELATIVE_TIME)


def to_json(manifest: FleetManifest) -> bytes:
    """The manifest as the bytes of `manifest.json`. `sha256` is not part of them, it is their hash."""
    document = {
        "schema": SCHEMA,
        "kind": KIND,
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
    """The manifest of the bytes of a `manifest.json`.

    Raises:
        BundleError: (check "schema") not JSON, of another kind, or a field that is not as it must be; the message names it.
    """
    root = read_object(content)
    if (schema := root.take("schema", int)) != SCHEMA:
        refuse(f"has schema {schema}; this version reads schema {SCHEMA}", "Use the version that wrote it.")
    if (kind := root.take("kind", str)) != KIND:
        refuse(f"is of kind {kind!r}, not {KIND!r}", "Use a model that `forecastd fleet train` wrote.")
    if root.take("normalizer", str) != NORMALIZER:
        refuse(f"has another normalizer than {NORMALIZER}")
    metrics, cycles, profiles = _metrics(root), root.names("cycles"), root.names("profiles")
    if not set(cycles) <= CALENDAR.keys() or len(set(cycles)) != len(cycles):
        refuse("has cycles that are not of the calendar")
    if len(set(profiles)) != len(profiles) or profiles[:1] != (OTHER,) or len(profiles) > MOST_PROFILES:
        refuse(f"must have distinct profiles, {OTHER} first")
    encoder_length = root.integer("encoder_length", 2, MOST["encoder_length"])
    levels = read_levels(root)
    manifest = FleetManifest(
        name=name_of(root.take("name", str), "name"),
        metrics=metrics,
        cycles=cycles,
        profiles=profiles,
        groups=_groups(root),
        step=root.integer("step", 1, LARGEST_STEP),
        encoder_length=encoder_length,
        encoder_minimum=root.integer("encoder_minimum", 2, encoder_length),
        horizon=root.integer("horizon", 1, MOST["horizon"]),
        levels=levels,
        network=_network(root.child("network")),
        training=read_training(root.child("training")),
        versions=root.child("versions").strings(),
        scores=root.free("scores"),
        files=read_files(root.child("files")),
        anchors=_anchors(root, len(metrics)),
        sha256=sha256,
    )
    root.end()
    _check_network(manifest)
    return manifest


def _metrics(root: Fields) -> tuple[Metric, ...]:
    found = []
    for index, item in enumerate(root.take("metrics", list)):
        fields = Fields(item, f"metrics.{index}")
        metric = Metric(
            name=name_of(fields.take("name", str), f"metrics.{index}.name"),
            unit=fields.take("unit", str),
            low=fields.number("low"),
            high=fields.number("high"),
            transform="log1p" if (told := fields.take("transform", str)) == "log1p" else "none",
        )
        fields.end()
        if told not in {"none", "log1p"} or metric.low >= metric.high or (told == "log1p" and metric.low < 0):
            refuse(f"has a metric without sense at metrics.{index}")
        found.append(metric)
    names = {metric.name for metric in found}
    if not 0 < len(names) == len(found) <= MOST_METRICS or names & {*known_reals(tuple(CALENDAR)), RELATIVE_TIME}:
        refuse("must have metrics, each once, and none like a variable of the calendar")
    return tuple(found)


def _anchors(root: Fields, metrics: int) -> tuple[Anchor, ...]:
    found = []
    for index, item in enumerate(root.take("anchors", list)):
        fields = Fields(item, f"anchors.{index}")
        anchor = Anchor(fields.number("smoothing"), fields.number("damping"))
        fields.end()
        if not (0 < anchor.smoothing <= 1 and 0 <= anchor.damping <= 1):
            refuse(f"has an anchor without sense at anchors.{index}")
        found.append(anchor)
    if len(found) not in {0, metrics}:
        refuse("must have an anchor for each metric, or none")
    return tuple(found)


def _groups(root: Fields) -> tuple[str, ...]:
    groups = root.take("groups", list)
    if not all(isinstance(group, str) and _GROUP.fullmatch(group) for group in groups):
        refuse("must have groups named server:NAME, profile:NAME or default")
    if len(set(groups)) != len(groups) or DEFAULT not in groups or len(groups) > MOST_GROUPS:
        refuse("must have distinct groups, default among them")
    return tuple(groups)


def _network(network: Fields) -> Network:
    found = replace(
        read_sizes(network),
        targets=network.integer("targets", 1, MOST_METRICS),
        profiles=network.integer("profiles", 1, MOST_PROFILES),
        embedding_size=network.integer("embedding_size", 1, MOST["hidden_size"]),
    )
    network.end()
    return found


def _check_network(manifest: FleetManifest) -> None:
    network = manifest.network
    sizes = network.outputs, network.targets, network.profiles
    if (network.encoder_reals, network.decoder_reals) != fleet_reals(manifest.names, manifest.cycles) or sizes != (
        len(manifest.levels), len(manifest.metrics), len(manifest.profiles),
    ):  # fmt: skip
        refuse("has a network whose variables, targets or profiles differ from its metrics, levels and profiles")
    if network.attention_heads > network.hidden_size or network.embedding_size > network.hidden_size:
        refuse("has more attention heads, or numbers of a profile, than hidden units")
