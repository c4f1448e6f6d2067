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

from models.bundle.records import Interval, TrainingRecord
from models.errors import BundleError, DataError, TrainingDiverged
from models.fleet.anchors import anchor_forecast, fit_anchors
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
from models.fleet.dataset import FleetData, FleetPart, FleetSplit, SplitOptions, carry_forward, split
from models.fleet.engines import TOLERANCE, load_fleet_engine, range_difference
from models.fleet.manifest import CYCLE_SECONDS, MAX_GROUPS, OTHER_PROFILE, Anchor, FleetManifest, fleet_reals
from models.market.manifest import TftConfig
from models.registry import TrainingCallback, TrainingTask, library_versions
from models.tft.parameters import export_parameters
from models.training import state
from models.training.progress import ProgressMeter

if TYPE_CHECKING:
    from models.fleet.evaluation import EvaluationData, FleetBaselines
    from models.fleet.scales import GroupScales

MIN_CYCLES = 2  # how often the training part must hold a cycle of the calendar before the network is told of it
_ANCHOR_WINDOWS = 2048  # windows of the training part that the anchors are fitted to
MIN_TICKS_PER_CYCLE = 4  # of a cycle, at the least
MIN_WINDOWS_PER_SCALE = 4  # windows' worth of ticks that a server must have been observed for a scale of its own


def check_options(config: FleetTrainingConfig) -> None:
    """Refuse options that make no sense. Raises DataError, naming the option."""
    if not 2 <= config.encoder_minimum <= config.encoder_length:
        raise DataError(
            f"--encoder-minimum must be from 2 to the encoder length, {config.encoder_length}, not {config.encoder_minimum}."
        )
    if not 1 <= config.embedding_size <= config.hidden_size:
        raise DataError(f"A profile is told by 1 to {config.hidden_size} numbers, not {config.embedding_size}.")
    if not (0 <= config.short <= 1 and 0 <= config.unknown <= 1 and config.compared_windows >= 0):
        raise DataError("The shares of short encoders and of unknown servers must be from 0 to 1.")


def check_data(data: FleetData, config: FleetTrainingConfig) -> None:
    """Refuse a history that cannot carry the training. Raises DataError."""
    max_servers = MAX_GROUPS - len(set(data.profiles)) - 1
    if len(data.servers) > max_servers:
        raise DataError(
            f"A model can have the scales of {max_servers} servers, and there are {len(data.servers)}. Take fewer."
        )
    _split_data(data, carry_forward(data.values, data.max_gap), config)


def _split_data(data: FleetData, filled: Floats, config: FleetTrainingConfig) -> FleetSplit:
    cut = SplitOptions(config.encoder_minimum, config.encoder_length, config.horizon, config.validation, config.test)
    return split(data, filled, cut)


def resume(
    work: state.TrainingState, out: Path, progress: TrainingCallback, *, created: int, force: bool, finish: bool
) -> FleetManifest:
    """From an unfinished training to a written bundle. Raises as `models.training.train` does."""
    data, config = work.data, work.read_config()
    if not isinstance(data, FleetData) or not isinstance(config, FleetTrainingConfig):
        raise TypeError(f"These are no rows of a fleet: {type(data).__name__}")
    filled = carry_forward(data.values, data.max_gap)
    parts = _split_data(data, filled, config)
    meter = _make_meter(data, config, parts, progress)
    run = _make_run(data, config, filled, parts, meter)
    try:
        model = _fit_network(run, work, meter, finish=finish)
        meter.report_stage("score", 0)
        bundle = _export(run, model, out, created)
    except TrainingDiverged:
        work.remove()  # going on from there would end there
        raise
    meter.report_stage("score", 1)
    bundle, engine = _compare_engine(bundle)
    meter.report_stage("score", 2)
    manifest = replace(bundle.manifest, scores=_score_parts(run, engine, meter))
    meter.report_stage("write", 0)
    written = write_fleet_bundle(out, replace(bundle, manifest=manifest), replace_old=force)
    meter.report_stage("write", 1)
    return written


@dataclass(frozen=True, eq=False)
class _FleetRun:
    """What a training is given, and what follows from it alone.

    anchors: of the metrics; first: `[M, Q]`, the quantiles of how far outcomes of the training part were off them, which is
    all that a network may say that knows nothing yet
    """

    data: FleetData
    config: FleetTrainingConfig
    parts: FleetSplit
    cycles: tuple[str, ...]
    profiles: tuple[str, ...]
    network: TftConfig
    groups: GroupScales
    evaluation: EvaluationData
    baselines: FleetBaselines
    anchors: tuple[Anchor, ...]
    initial_quantiles: Floats


def _make_run(
    data: FleetData, config: FleetTrainingConfig, filled: Floats, parts: FleetSplit, meter: ProgressMeter
) -> _FleetRun:
    """The libraries are imported one after the other, for each may take a minute on a busy disk."""
    import torch  # noqa: F401

    meter.report_stage("start", 1)
    import lightning.pytorch  # noqa: F401

    meter.report_stage("start", 2)
    from models.fleet.batches import GroupIndex
    from models.fleet.evaluation import EvaluationData, FleetBaselines
    from models.fleet.malloc import keep_freed_memory
    from models.fleet.scales import fit_groups

    keep_freed_memory()
    meter.report_stage("start", 3)
    min_ticks = (
        MIN_WINDOWS_PER_SCALE * (config.encoder_length + config.horizon) if config.own_scales else data.ticks + 1
    )
    groups = fit_groups(data, parts.train.stop, min_ticks)
    cycles, profiles = (
        _select_cycles(data, parts.train),
        (OTHER_PROFILE, *dict.fromkeys(profile for profile in data.profiles if profile != OTHER_PROFILE)),
    )
    evaluation = EvaluationData.build(data, filled, groups, GroupIndex.build(data, groups, profiles).server_rows)
    baselines = FleetBaselines.fit(evaluation, parts.train, config.horizon, config.levels)
    encoder, decoder = fleet_reals(tuple(metric.name for metric in data.metrics), cycles)
    network = TftConfig(
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
    anchors, initial_quantiles = _fit_anchors(evaluation, parts.train, config)
    return _FleetRun(
        data, config, parts, cycles, profiles, network, groups, evaluation, baselines, anchors, initial_quantiles
    )


def _fit_anchors(
    evaluation: EvaluationData, part: FleetPart, config: FleetTrainingConfig
) -> tuple[tuple[Anchor, ...], Floats]:
    """Those that suit the training part, and the quantiles `[M, Q]` of how far outcomes were off them."""
    from models.fleet.baselines import outcome

    length = min(config.encoder_length, int(part.runs.max()))
    servers, origins = part.spread_windows(_ANCHOR_WINDOWS, length, evaluation.data.ticks)
    windows = evaluation.scaled[servers[:, None], origins[:, None] + np.arange(1 - length, 1)]
    outcomes = outcome(evaluation.actual, servers, origins, config.horizon)
    anchors = fit_anchors(windows, outcomes)
    residuals = outcomes - anchor_forecast(windows, anchors, config.horizon)
    quantiles = np.nanquantile(residuals.swapaxes(1, 2).reshape(-1, residuals.shape[1]), config.levels, axis=0)
    return anchors, np.asarray(quantiles.T, dtype=np.float32)


def _select_cycles(data: FleetData, part: FleetPart) -> tuple[str, ...]:
    """The cycles that the training part holds often enough, and the grid can show: of one seen once, the network could only
    learn the place.
    """
    span = (part.stop - part.start) * data.step
    return tuple(
        name
        for name, seconds in CYCLE_SECONDS.items()
        if span >= MIN_CYCLES * seconds and seconds >= MIN_TICKS_PER_CYCLE * data.step
    )


def _make_meter(
    data: FleetData, config: FleetTrainingConfig, parts: FleetSplit, progress: TrainingCallback
) -> ProgressMeter:
    validation_batches = -(-len(_validation_windows(data, config, parts)[0]) // config.batch_size)
    batches = min(config.batches_per_epoch, -(-len(parts.train.windows) // config.batch_size))
    return ProgressMeter(
        progress,
        epochs=config.epochs,
        batches=batches,
        validation_batches=validation_batches,
        scoring_batches=2 * validation_batches,
    )


def _validation_windows(data: FleetData, config: FleetTrainingConfig, parts: FleetSplit) -> Any:
    return parts.validation.spread_windows(config.scored_windows, config.encoder_length, data.ticks)


def _fit_network(run: _FleetRun, work: state.TrainingState, meter: ProgressMeter, *, finish: bool) -> Any:
    """The library's network with the best weights that were found, in eval mode on the CPU."""
    from models.fleet import batches as fleet
    from models.fleet import initialisation, network
    from models.tft import torch_model
    from models.training import lightning as fitting

    config, data, parts = run.config, run.data, run.parts
    torch_model.seed_all(config.seed)
    model = network.build_network(run.network, config.levels, config.encoder_length, config.dropout)
    initialisation.initialise_weights(model, run.network, run.initial_quantiles)
    meter.report_stage("start", 4)
    if not (work.finished or finish):
        group_index = fleet.GroupIndex.build(data, run.groups, run.profiles)
        windows = fleet.FleetWindowDataset(
            data, run.evaluation.filled, run.groups, network=run.network, cycles=run.cycles, anchors=run.anchors,
            config=config,
        )  # fmt: skip
        sampler = fleet.FleetBatchSampler(parts.train, group_index, data.ticks, config)
        servers, origins = _validation_windows(data, config, parts)
        length = min(config.encoder_length, int(parts.validation.runs.max()))
        validation_batches = fleet.validation_batches(servers, origins, length, group_index, config.batch_size)
        meter.report_stage("start", 5)
        module = fleet.FleetQuantileModule(model, config, _metric_weights(run), config.epochs * len(sampler))
        if not fitting.fit_module(
            module, fleet.make_loaders(windows, sampler, validation_batches), config, work.path, meter.report_fit
        ):
            raise KeyboardInterrupt
        work.mark_finished()
    fitting.load_best_weights(model, work.path)
    return model.eval()


def _metric_weights(run: _FleetRun) -> Floats:
    """How much each metric counts in the loss: the less it moves within a horizon, the more, or the restless ones were all
    that is learnt.
    """
    errors = run.baselines.persistence.errors
    width = np.maximum((errors[:, -1] - errors[:, 0]).mean(axis=-1), 1e-3)
    weights = 1 / np.sqrt(width)
    return np.asarray(weights / weights.mean(), dtype=np.float32)


def _export(run: _FleetRun, model: Any, out: Path, created: int) -> FleetBundle:
    """The bundle, in memory, without scores and with an empty canary."""
    data, config, parts = run.data, run.config, run.parts
    weights = export_parameters(model, run.network)
    manifest = FleetManifest(
        name=config.name,
        metrics=data.metrics,
        cycles=run.cycles,
        profiles=run.profiles,
        groups=run.groups.names,
        step=data.step,
        encoder_length=config.encoder_length,
        encoder_minimum=config.encoder_minimum,
        horizon=config.horizon,
        levels=config.levels,
        network=run.network,
        training=TrainingRecord(
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
        versions=library_versions(),
        scores={},
        files={},
        anchors=run.anchors,
    )
    return FleetBundle(out, manifest, weights, run.groups.center, run.groups.scale, _make_canary(run))


def _make_canary(run: _FleetRun) -> FleetCanary:
    """The newest full window of the test part as that of the server it is of, and one as that of a server never seen."""
    data, part, length = run.data, run.parts.test, run.config.encoder_length
    full = part.windows[part.runs == length]
    origin = int((full % data.ticks).max())
    rows = np.flatnonzero(full % data.ticks == origin)
    servers = [int(full[rows[0]] // data.ticks), int(full[rows[-1]] // data.ticks)]
    own = int(run.evaluation.group_rows[servers[0]])
    levels, horizon = len(run.config.levels), run.config.horizon
    return FleetCanary(
        tick=data.first + origin,
        values=np.stack([run.evaluation.filled[server, origin - length + 1 : origin + 1] for server in servers]),
        profiles=np.array([run.profiles.index(data.profiles[servers[0]]), 0], dtype=np.int64),
        groups=np.array([own, len(run.groups.names) - 1], dtype=np.int64),
        quantiles=np.zeros((CANARY_SERVERS, len(data.metrics), levels, horizon), dtype=np.float32),
    )


def _compare_engine(bundle: FleetBundle) -> tuple[FleetBundle, FleetEngine]:
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


def _score_parts(run: _FleetRun, engine: FleetEngine, meter: ProgressMeter) -> dict[str, object]:
    from models.fleet.evaluation import EvaluationOptions, compare

    config, scores = run.config, dict[str, object]()
    validation_batches = -(-len(_validation_windows(run.data, config, run.parts)[0]) // config.batch_size)
    for index, part in enumerate((run.parts.validation, run.parts.test)):
        length = min(config.encoder_length, int(part.runs.max()))
        compared = config.compared_windows if part.name == "test" else 0
        size = EvaluationOptions(length, config.horizon, config.levels, config.scored_windows, compared, config.seed)
        report = _report_share(meter, index * validation_batches, validation_batches)
        scores[part.name] = compare(engine, run.evaluation, run.baselines, part, size, report=report)
    return scores


def _report_share(meter: ProgressMeter, before: float, share: float) -> Callable[[float], None]:
    return lambda done: meter.report_scoring(before + share * done)


def _interval(part: FleetPart, data: FleetData) -> Interval:
    initialisation, stop = (data.first + tick for tick in (part.start, part.stop))
    return Interval(initialisation * data.step, stop * data.step, len(part.windows))


TASK = TrainingTask(
    rows_type=FleetData,
    config_type=FleetTrainingConfig,
    check_options=check_options,
    check_data=check_data,
    resume=resume,
    read_manifest=read_fleet_manifest,
)
