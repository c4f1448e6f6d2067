"""From a fleet's history to a checked bundle: split, scale, fit, compare with the baselines, export, write.

What is exported are the weights of the library's network, and the engine that will serve is held against that network
before anything is written. Torch, Lightning and pytorch_forecasting are imported by `carry_on` only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models import workdir
from models.errors import BundleError, DataError, Diverged
from models.fleet.anchors import anchored, fit_anchors
from models.fleet.base import FleetEngine, Floats
from models.fleet.bundle import (
    CANARY_SERVERS,
    FleetBundle,
    FleetCanary,
    canary_input,
    read_fleet_manifest,
    write_fleet_bundle,
)
from models.fleet.config import FleetTrainingConfig
from models.fleet.data import Cut, FleetData, FleetPart, FleetSplit, carried, split
from models.fleet.engines import TOLERANCE, load_fleet_engine, range_difference
from models.fleet.manifest import CALENDAR, MOST_GROUPS, OTHER, Anchor, FleetManifest, fleet_reals
from models.kinds import Kind, Tell, versions
from models.manifest import Network
from models.progress import Meter
from models.records import Interval, Training
from models.shapes import exported

if TYPE_CHECKING:
    from models.fleet.comparison import Ground, Rivals
    from models.fleet.groups import Groups

CYCLES_SEEN = 2  # how often the training part must hold a cycle of the calendar before the network is told of it
_ANCHORED = 2048  # windows of the training part that the anchors are fitted to
TICKS_SEEN = 4  # of a cycle, at the least
OWN_SCALE = 4  # windows' worth of ticks that a server must have been observed for a scale of its own


def check(config: FleetTrainingConfig) -> None:
    """Refuse options that make no sense. Raises DataError, naming the option."""
    if not 2 <= config.encoder_minimum <= config.encoder_length:
        raise DataError(
            f"--encoder-minimum must be from 2 to the encoder length, {config.encoder_length}, not {config.encoder_minimum}."
        )
    if not 1 <= config.embedding_size <= config.hidden_size:
        raise DataError(f"A profile is told by 1 to {config.hidden_size} numbers, not {config.embedding_size}.")
    if not (0 <= config.short <= 1 and 0 <= config.unknown <= 1 and config.compared_windows >= 0):
        raise DataError("The shares of short encoders and of unknown servers must be from 0 to 1.")


def prepare(data: FleetData, config: FleetTrainingConfig) -> None:
    """Refuse a history that cannot carry the training. Raises DataError."""
    most = MOST_GROUPS - len(set(data.profiles)) - 1
    if len(data.servers) > most:
        raise DataError(
            f"A model can have the scales of {most} servers, and there are {len(data.servers)}. Take fewer."
        )
    _split(data, carried(data.values, data.max_gap), config)


def _split(data: FleetData, filled: Floats, config: FleetTrainingConfig) -> FleetSplit:
    cut = Cut(config.encoder_minimum, config.encoder_length, config.horizon, config.validation, config.test)
    return split(data, filled, cut)


def carry_on(
    work: workdir.Work, out: Path, progress: Tell, *, created: int, force: bool, finish: bool
) -> FleetManifest:
    """From an unfinished training to a written bundle. Raises as `models.training.train` does."""
    data, config = work.data, work.options()
    if not isinstance(data, FleetData) or not isinstance(config, FleetTrainingConfig):
        raise TypeError(f"These are no rows of a fleet: {type(data).__name__}")
    filled = carried(data.values, data.max_gap)
    parts = _split(data, filled, config)
    meter = _meter(data, config, parts, progress)
    job = _job(data, config, filled, parts, meter)
    try:
        model = _fit(job, work, meter, finish=finish)
        meter.step("score", 0)
        bundle = _export(job, model, out, created)
    except Diverged:
        work.remove()  # going on from there would end there
        raise
    meter.step("score", 1)
    bundle, engine = _proven(bundle)
    meter.step("score", 2)
    manifest = replace(bundle.manifest, scores=_scores(job, engine, meter))
    meter.step("write", 0)
    written = write_fleet_bundle(out, replace(bundle, manifest=manifest), replace_old=force)
    meter.step("write", 1)
    return written


@dataclass(frozen=True, eq=False)
class _Job:
    """What a training is given, and what follows from it alone.

    anchors: of the metrics; first: `[M, Q]`, the quantiles of how far outcomes of the training part were off them, which is
    all that a network may say that knows nothing yet
    """

    data: FleetData
    config: FleetTrainingConfig
    parts: FleetSplit
    cycles: tuple[str, ...]
    profiles: tuple[str, ...]
    network: Network
    groups: Groups
    ground: Ground
    rivals: Rivals
    anchors: tuple[Anchor, ...]
    first: Floats


def _job(data: FleetData, config: FleetTrainingConfig, filled: Floats, parts: FleetSplit, meter: Meter) -> _Job:
    """The libraries are imported one after the other, for each may take a minute on a busy disk."""
    import torch  # noqa: F401

    meter.step("start", 1)
    import lightning.pytorch  # noqa: F401

    meter.step("start", 2)
    from models.fleet.comparison import Ground, Rivals
    from models.fleet.fit import Which
    from models.fleet.groups import fit_groups
    from models.fleet.memory import keep_memory

    keep_memory()
    meter.step("start", 3)
    least = OWN_SCALE * (config.encoder_length + config.horizon) if config.own_scales else data.ticks + 1
    groups = fit_groups(data, parts.train.stop, least)
    cycles, profiles = _cycles(data, parts.train), (OTHER, *dict.fromkeys(one for one in data.profiles if one != OTHER))
    ground = Ground.of(data, filled, groups, Which.of(data, groups, profiles).own)
    rivals = Rivals.of(ground, parts.train, config.horizon, config.levels)
    encoder, decoder = fleet_reals(tuple(metric.name for metric in data.metrics), cycles)
    network = Network(
        hidden_size=config.hidden_size,
        hidden_continuous_size=config.hidden_continuous_size,
        attention_heads=config.attention_heads,
        lstm_layers=config.lstm_layers,
        encoder_reals=encoder,
        decoder_reals=decoder,
        outputs=len(config.levels),
        targets=len(data.metrics),
        profiles=len(profiles),
        embedding_size=config.embedding_size,
    )
    anchors, first = _anchors(ground, parts.train, config)
    return _Job(data, config, parts, cycles, profiles, network, groups, ground, rivals, anchors, first)


def _anchors(ground: Ground, part: FleetPart, config: FleetTrainingConfig) -> tuple[tuple[Anchor, ...], Floats]:
    """Those that suit the training part, and the quantiles `[M, Q]` of how far outcomes were off them."""
    from models.fleet.baselines import outcome

    length = min(config.encoder_length, int(part.runs.max()))
    servers, origins = part.spread(_ANCHORED, length, ground.data.ticks)
    windows = ground.scaled[servers[:, None], origins[:, None] + np.arange(1 - length, 1)]
    outcomes = outcome(ground.actual, servers, origins, config.horizon)
    anchors = fit_anchors(windows, outcomes)
    off = outcomes - anchored(windows, anchors, config.horizon)
    quantiles = np.nanquantile(off.swapaxes(1, 2).reshape(-1, off.shape[1]), config.levels, axis=0)
    return anchors, np.asarray(quantiles.T, dtype=np.float32)


def _cycles(data: FleetData, part: FleetPart) -> tuple[str, ...]:
    """The cycles that the training part holds often enough, and the grid can show: of one seen once, the network could only
    learn the place.
    """
    span = (part.stop - part.start) * data.step
    return tuple(
        name for name, long in CALENDAR.items() if span >= CYCLES_SEEN * long and long >= TICKS_SEEN * data.step
    )


def _meter(data: FleetData, config: FleetTrainingConfig, parts: FleetSplit, progress: Tell) -> Meter:
    checks = -(-len(_held_out(data, config, parts)[0]) // config.batch_size)
    batches = min(config.batches_per_epoch, -(-len(parts.train.windows) // config.batch_size))
    return Meter(progress, epochs=config.epochs, batches=batches, checks=checks, scored=2 * checks)


def _held_out(data: FleetData, config: FleetTrainingConfig, parts: FleetSplit) -> Any:
    return parts.validation.spread(config.scored_windows, config.encoder_length, data.ticks)


def _fit(job: _Job, work: workdir.Work, meter: Meter, *, finish: bool) -> Any:
    """The library's network with the best weights that were found, in eval mode on the CPU."""
    from models import fit, library
    from models.fleet import fit as fleet
    from models.fleet import network, start

    config, data, parts = job.config, job.data, job.parts
    library.seed(config.seed)
    model = network.build(job.network, config.levels, config.encoder_length, config.dropout)
    start.set_out(model, job.network, job.first)
    meter.step("start", 4)
    if not (work.finished or finish):
        which = fleet.Which.of(data, job.groups, job.profiles)
        windows = fleet.Windows(
            data, job.ground.filled, job.groups, network=job.network, cycles=job.cycles, anchors=job.anchors,
            config=config,
        )  # fmt: skip
        draws = fleet.Draws(parts.train, which, data.ticks, config)
        servers, origins = _held_out(data, config, parts)
        length = min(config.encoder_length, int(parts.validation.runs.max()))
        checks = fleet.held_out(servers, origins, length, which, config.batch_size)
        meter.step("start", 5)
        module = fleet.FleetFit(model, config, _weights(job), config.epochs * len(draws))
        if not fit.fit(module, fleet.loaders(windows, draws, checks), config, work.path, meter.fitted):
            raise KeyboardInterrupt
        work.finish()
    fit.best_weights(model, work.path)
    return model.eval()


def _weights(job: _Job) -> Floats:
    """How much each metric counts in the loss: the less it moves within a horizon, the more, or the restless ones were all
    that is learnt.
    """
    errors = job.rivals.persistence.errors
    width = np.maximum((errors[:, -1] - errors[:, 0]).mean(axis=-1), 1e-3)
    weights = 1 / np.sqrt(width)
    return np.asarray(weights / weights.mean(), dtype=np.float32)


def _export(job: _Job, model: Any, out: Path, created: int) -> FleetBundle:
    """The bundle, in memory, without scores and with an empty canary."""
    data, config, parts = job.data, job.config, job.parts
    weights = exported(model, job.network)
    manifest = FleetManifest(
        name=config.name,
        metrics=data.metrics,
        cycles=job.cycles,
        profiles=job.profiles,
        groups=job.groups.names,
        step=data.step,
        encoder_length=config.encoder_length,
        encoder_minimum=config.encoder_minimum,
        horizon=config.horizon,
        levels=config.levels,
        network=job.network,
        training=Training(
            start=data.first * data.step,
            end=(data.first + data.ticks) * data.step,
            rows=data.ticks * len(data.servers),
            data_sha256=data.data_sha256,
            source=data.source,
            synthetic=data.synthetic,
            created=created,
            parts={part.name: _interval(part, data) for part in (parts.train, parts.validation, parts.test)},
            config=asdict(config),
        ),
        versions=versions(),
        scores={},
        files={},
        anchors=job.anchors,
    )
    return FleetBundle(out, manifest, weights, job.groups.center, job.groups.scale, _canary(job))


def _canary(job: _Job) -> FleetCanary:
    """The newest full window of the test part as that of the server it is of, and one as that of a server never seen."""
    data, part, length = job.data, job.parts.test, job.config.encoder_length
    full = part.windows[part.runs == length]
    origin = int((full % data.ticks).max())
    there = np.flatnonzero(full % data.ticks == origin)
    servers = [int(full[there[0]] // data.ticks), int(full[there[-1]] // data.ticks)]
    own = int(job.ground.rows[servers[0]])
    levels, horizon = len(job.config.levels), job.config.horizon
    return FleetCanary(
        tick=data.first + origin,
        values=np.stack([job.ground.filled[one, origin - length + 1 : origin + 1] for one in servers]),
        profiles=np.array([job.profiles.index(data.profiles[servers[0]]), 0], dtype=np.int64),
        groups=np.array([own, len(job.groups.names) - 1], dtype=np.int64),
        quantiles=np.zeros((CANARY_SERVERS, len(data.metrics), levels, horizon), dtype=np.float32),
    )


def _proven(bundle: FleetBundle) -> tuple[FleetBundle, FleetEngine]:
    """The bundle with the canary that the library's network gives, and the engine that serves, held against it."""
    import torch

    threads = torch.get_num_threads()
    quantiles = load_fleet_engine(bundle, "library", threads).forecast(canary_input(bundle))
    engine = load_fleet_engine(bundle, "auto", threads)
    difference = range_difference(engine.forecast(canary_input(bundle)), quantiles)
    if not difference <= TOLERANCE:
        raise BundleError(
            f"The engine {engine.name} differs from the trained network by {difference:.1e} of the quantile range; "
            f"{TOLERANCE:.0e} is allowed, so no bundle was written. The installed pytorch-forecasting may have changed.",
            check="canary",
        )
    return replace(bundle, canary=replace(bundle.canary, quantiles=quantiles)), engine


def _scores(job: _Job, engine: FleetEngine, meter: Meter) -> dict[str, object]:
    from models.fleet.comparison import Size, compare

    config, found = job.config, dict[str, object]()
    checks = -(-len(_held_out(job.data, config, job.parts)[0]) // config.batch_size)
    for turn, part in enumerate((job.parts.validation, job.parts.test)):
        length = min(config.encoder_length, int(part.runs.max()))
        compared = config.compared_windows if part.name == "test" else 0
        size = Size(length, config.horizon, config.levels, config.scored_windows, compared, config.seed)
        tell = _share(meter, turn * checks, checks)
        found[part.name] = compare(engine, job.ground, job.rivals, part, size, tell=tell)
    return found


def _share(meter: Meter, before: float, share: float) -> Callable[[float], None]:
    return lambda done: meter.scored(before + share * done)


def _interval(part: FleetPart, data: FleetData) -> Interval:
    start, stop = (data.first + at for at in (part.start, part.stop))
    return Interval(start * data.step, stop * data.step, len(part.windows))


TRADE = Kind(
    rows=FleetData,
    config=FleetTrainingConfig,
    check=check,
    prepare=prepare,
    carry_on=carry_on,
    read_manifest=read_fleet_manifest,
)
