"""From the history of a fleet to a checked bundle: the steps of `models.training.run` for a fleet.

The weights of the library's network are exported, and the engine that will serve is compared with that network.
Invariant: a bundle whose engine differs from the network is never written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle.records import Interval, TrainingRecord
from models.errors import BundleError, DataError
from models.fleet.anchors import anchor_forecast, fit_anchors
from models.fleet.base import FleetEngine, Floats, Indices
from models.fleet.baselines import outcome
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
from models.fleet.evaluation import EvaluationData, EvaluationOptions, FleetBaselines, compare
from models.fleet.malloc import keep_freed_memory
from models.fleet.manifest import CYCLE_SECONDS, MAX_GROUPS, OTHER_PROFILE, Anchor, FleetManifest, fleet_reals
from models.fleet.scaling import GroupScales
from models.tft.config import TftConfig
from models.tft.parameters import export_parameters
from models.training.task import BatchCounts, TrainingTask, library_versions

MIN_CYCLES = 2  # how often the train part must contain a cycle of the calendar for the network to get it as an input
MIN_TICKS_PER_CYCLE = 4
MIN_WINDOWS_PER_SCALE = 4  # windows' worth of observed ticks that a server needs for a scale of its own
_ANCHOR_WINDOWS = 2048  # windows of the train part that the anchors are fitted to


@dataclass(frozen=True, eq=False)
class _FleetRun:
    """The inputs of a training run, and values derived only from them.

    anchors:           of the metrics
    initial_quantiles: `[M, Q]`, quantiles of the distance between the outcomes of the train part and the anchors: the best
                       that a network can give before it has learned anything
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


class FleetTask(
    TrainingTask[FleetData, FleetTrainingConfig, FleetSplit, _FleetRun, FleetBundle, FleetEngine, FleetManifest]
):
    """The training of a fleet model."""

    rows_type = FleetData
    config_type = FleetTrainingConfig

    def check_options(self, config: FleetTrainingConfig) -> None:
        """See `TrainingTask.check_options`."""
        if not 2 <= config.encoder_minimum <= config.encoder_length:
            raise DataError(
                f"--encoder-minimum must be from 2 to the encoder length, {config.encoder_length}, not "
                f"{config.encoder_minimum}."
            )
        if not 1 <= config.embedding_size <= config.hidden_size:
            raise DataError(
                f"The embedding of a profile must have 1 to {config.hidden_size} numbers, not {config.embedding_size}."
            )
        if not (0 <= config.short <= 1 and 0 <= config.unknown <= 1 and config.compared_windows >= 0):
            raise DataError("The shares of short encoders and of unknown servers must be from 0 to 1.")

    def check_data(self, rows: FleetData, config: FleetTrainingConfig) -> None:
        """See `TrainingTask.check_data`."""
        max_servers = MAX_GROUPS - len(set(rows.profiles)) - 1
        if len(rows.servers) > max_servers:
            raise DataError(
                f"A model can have scales for {max_servers} servers, and the history has {len(rows.servers)}. Use fewer."
            )
        self.split(rows, config)

    def split(self, rows: FleetData, config: FleetTrainingConfig) -> FleetSplit:
        """See `TrainingTask.split`."""
        return _split_data(rows, carry_forward(rows.values, rows.max_gap), config)

    def count_batches(self, rows: FleetData, config: FleetTrainingConfig, parts: FleetSplit) -> BatchCounts:
        """See `TrainingTask.count_batches`."""
        validation = _count_validation_batches(rows, config, parts)
        train = min(config.batches_per_epoch, -(-len(parts.train.windows) // config.batch_size))
        return BatchCounts(train, validation, 2 * validation)

    def load_libraries(self) -> None:
        """See `TrainingTask.load_libraries`."""
        import models.fleet.batches
        import models.fleet.initialization
        import models.fleet.scales  # noqa: F401

        keep_freed_memory()

    def make_run(self, rows: FleetData, config: FleetTrainingConfig, parts: FleetSplit) -> _FleetRun:
        """See `TrainingTask.make_run`."""
        from models.fleet.batches import GroupIndex
        from models.fleet.scales import fit_groups

        window = config.encoder_length + config.horizon
        groups = fit_groups(
            rows, parts.train.stop, MIN_WINDOWS_PER_SCALE * window if config.own_scales else rows.ticks + 1
        )
        cycles = _select_cycles(rows, parts.train)
        profiles = (OTHER_PROFILE, *dict.fromkeys(profile for profile in rows.profiles if profile != OTHER_PROFILE))
        server_rows = GroupIndex.build(rows, groups, profiles).server_rows
        evaluation = EvaluationData.build(rows, carry_forward(rows.values, rows.max_gap), groups, server_rows)
        anchors, initial_quantiles = _fit_anchors(evaluation, parts.train, config)
        return _FleetRun(
            data=rows,
            config=config,
            parts=parts,
            cycles=cycles,
            profiles=profiles,
            network=_make_network(rows, config, cycles, profiles),
            groups=groups,
            evaluation=evaluation,
            baselines=FleetBaselines.fit(evaluation, parts.train, config.horizon, config.levels),
            anchors=anchors,
            initial_quantiles=initial_quantiles,
        )

    def build_network(self, run: _FleetRun) -> Any:
        """See `TrainingTask.build_network`."""
        from models.fleet.initialization import initialize_weights
        from models.fleet.network import build_network

        config = run.config
        network = build_network(run.network, config.levels, config.encoder_length, config.dropout)
        initialize_weights(network, run.network, run.initial_quantiles)
        return network

    def make_module(self, run: _FleetRun, network: Any) -> tuple[Any, tuple[Any, Any]]:
        """See `TrainingTask.make_module`."""
        from models.fleet.batches import (
            FleetBatchSampler,
            FleetQuantileModule,
            FleetWindowDataset,
            GroupIndex,
            make_loaders,
            validation_batches,
        )

        config, data, parts = run.config, run.data, run.parts
        group_index = GroupIndex.build(data, run.groups, run.profiles)
        windows = FleetWindowDataset(
            data, run.evaluation.filled, run.groups, network=run.network, cycles=run.cycles, anchors=run.anchors,
            config=config,
        )  # fmt: skip
        sampler = FleetBatchSampler(parts.train, group_index, data.ticks, config)
        servers, origins = _validation_windows(data, config, parts)
        length = min(config.encoder_length, int(parts.validation.runs.max()))
        validation = validation_batches(servers, origins, length, group_index, config.batch_size)
        module = FleetQuantileModule(network, config, _metric_weights(run), config.epochs * len(sampler))
        return module, make_loaders(windows, sampler, validation)

    def export(self, run: _FleetRun, network: Any, out: Path, created: int) -> FleetBundle:
        """See `TrainingTask.export`; the quantiles of the canary are zero until `check_engine`."""
        weights, manifest = export_parameters(network, run.network), _make_manifest(run, created)
        return FleetBundle(out, manifest, weights, run.groups.center, run.groups.scale, _make_canary(run))

    def check_engine(self, bundle: FleetBundle, network: Any) -> tuple[FleetBundle, FleetEngine]:
        """See `TrainingTask.check_engine`; the canary's quantiles are those of the library's network."""
        import torch

        threads = torch.get_num_threads()
        quantiles = load_fleet_engine(bundle, "library", threads).forecast(canary_input(bundle))
        engine = load_fleet_engine(bundle, "auto", threads)
        difference = range_difference(engine.forecast(canary_input(bundle)), quantiles)
        if not difference <= TOLERANCE:
            raise BundleError(
                f"The engine {engine.name} differs from the trained network by {difference:.1e} of the quantile range; "
                f"{TOLERANCE:.0e} is allowed, so no bundle was written. The installed pytorch-forecasting may have "
                "changed.",
                check="canary",
            )
        return replace(bundle, canary=replace(bundle.canary, quantiles=quantiles)), engine

    def score(self, run: _FleetRun, engine: FleetEngine, report: Callable[[float], None]) -> dict[str, object]:
        """See `TrainingTask.score`: the model and the baselines on the same windows."""
        config, scores = run.config, dict[str, object]()
        batches = _count_validation_batches(run.data, config, run.parts)
        for index, part in enumerate((run.parts.validation, run.parts.test)):
            options = EvaluationOptions(
                length=min(config.encoder_length, int(part.runs.max())),
                horizon=config.horizon,
                levels=config.levels,
                windows=config.scored_windows,
                ets_windows=config.compared_windows if part.name == "test" else 0,
                seed=config.seed,
            )

            def on_share(share: float, before: int = index * batches) -> None:
                report(before + share * batches)

            scores[part.name] = compare(engine, run.evaluation, run.baselines, part, options, report=on_share)
        return scores

    def write(self, out: Path, bundle: FleetBundle, scores: dict[str, object], *, replace_old: bool) -> FleetManifest:
        """See `TrainingTask.write`."""
        manifest = replace(bundle.manifest, scores=scores)
        return write_fleet_bundle(out, replace(bundle, manifest=manifest), replace_old=replace_old)

    def read_manifest(self, path: Path) -> FleetManifest:
        """See `TrainingTask.read_manifest`."""
        return read_fleet_manifest(path)


def _split_data(data: FleetData, filled: Floats, config: FleetTrainingConfig) -> FleetSplit:
    options = SplitOptions(
        config.encoder_minimum, config.encoder_length, config.horizon, config.validation, config.test
    )
    return split(data, filled, options)


def _validation_windows(data: FleetData, config: FleetTrainingConfig, parts: FleetSplit) -> tuple[Indices, Indices]:
    """Servers and origins of the windows that the fit is validated on."""
    return parts.validation.spread_windows(config.scored_windows, config.encoder_length, data.ticks)


def _count_validation_batches(data: FleetData, config: FleetTrainingConfig, parts: FleetSplit) -> int:
    return -(-len(_validation_windows(data, config, parts)[0]) // config.batch_size)


def _make_network(
    data: FleetData, config: FleetTrainingConfig, cycles: tuple[str, ...], profiles: tuple[str, ...]
) -> TftConfig:
    encoder, decoder = fleet_reals(tuple(metric.name for metric in data.metrics), cycles)
    return TftConfig(
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


def _fit_anchors(
    evaluation: EvaluationData, part: FleetPart, config: FleetTrainingConfig
) -> tuple[tuple[Anchor, ...], Floats]:
    """The best anchors for the train part, and the quantiles `[M, Q]` of the outcomes' distances from them."""
    length = min(config.encoder_length, int(part.runs.max()))
    servers, origins = part.spread_windows(_ANCHOR_WINDOWS, length, evaluation.data.ticks)
    windows = evaluation.scaled[servers[:, None], origins[:, None] + np.arange(1 - length, 1)]
    outcomes = outcome(evaluation.actual, servers, origins, config.horizon)
    anchors = fit_anchors(windows, outcomes)
    residuals = outcomes - anchor_forecast(windows, anchors, config.horizon)
    quantiles = np.nanquantile(residuals.swapaxes(1, 2).reshape(-1, residuals.shape[1]), config.levels, axis=0)
    return anchors, np.asarray(quantiles.T, dtype=np.float32)


def _select_cycles(data: FleetData, part: FleetPart) -> tuple[str, ...]:
    """The cycles that the train part contains often enough and that the time grid resolves.

    From a cycle that occurred once the network could only learn a position in time.
    """
    span = (part.stop - part.start) * data.step
    return tuple(
        name
        for name, seconds in CYCLE_SECONDS.items()
        if span >= MIN_CYCLES * seconds and seconds >= MIN_TICKS_PER_CYCLE * data.step
    )


def _metric_weights(run: _FleetRun) -> Floats:
    """Weight of each metric in the loss: larger where a metric moves less within a horizon.

    Otherwise the network would learn the volatile metrics only.
    """
    errors = run.baselines.persistence.errors
    width = np.maximum((errors[:, -1] - errors[:, 0]).mean(axis=-1), 1e-3)
    weights = 1 / np.sqrt(width)
    return np.asarray(weights / weights.mean(), dtype=np.float32)


def _make_manifest(run: _FleetRun, created: int) -> FleetManifest:
    """The manifest without scores and without records of the files."""
    data, config, parts = run.data, run.config, run.parts
    return FleetManifest(
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


def _make_canary(run: _FleetRun) -> FleetCanary:
    """Two of the newest full windows of the test part: one with its server's scale, one as of an unknown server."""
    data, part, length = run.data, run.parts.test, run.config.encoder_length
    full = part.windows[part.runs == length]
    origin = int((full % data.ticks).max())
    rows = np.flatnonzero(full % data.ticks == origin)
    servers = [int(full[rows[0]] // data.ticks), int(full[rows[-1]] // data.ticks)]
    server_row = int(run.evaluation.group_rows[servers[0]])
    levels, horizon = len(run.config.levels), run.config.horizon
    return FleetCanary(
        tick=data.first + origin,
        values=np.stack([run.evaluation.filled[server, origin - length + 1 : origin + 1] for server in servers]),
        profiles=np.array([run.profiles.index(data.profiles[servers[0]]), 0], dtype=np.int64),
        groups=np.array([server_row, len(run.groups.names) - 1], dtype=np.int64),
        quantiles=np.zeros((CANARY_SERVERS, len(data.metrics), levels, horizon), dtype=np.float32),
    )


def _interval(part: FleetPart, data: FleetData) -> Interval:
    start, stop = data.first + part.start, data.first + part.stop
    return Interval(start * data.step, stop * data.step, len(part.windows))
