"""From the history of a fleet to a checked bundle: the steps of `models.training.run` for a fleet.

The weights of the library's network are exported, and the engine that will serve is compared with that network.
Invariant: a bundle whose engine differs from the network is never written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.fleet.anchors import anchor_forecast, fit_anchors
from models.fleet.base import Floats, Indices
from models.fleet.baselines import SeasonalBaseline, outcome
from models.fleet.bundle import CENTER_KEY, SCALE_KEY, FleetBundle, fleet_canary_input
from models.fleet.config import FleetTrainingConfig
from models.fleet.dataset import FleetData, FleetPart, carry_forward, split
from models.fleet.engine import FleetEngine
from models.fleet.engines import TOLERANCE, canary_difference, load_fleet_engine
from models.fleet.evaluation import EvaluationData, compare, fit_baselines
from models.fleet.malloc import keep_freed_memory
from models.fleet.manifest import CYCLE_SECONDS, MAX_GROUPS, OTHER_PROFILE, Anchor, FleetManifest, fleet_reals
from models.fleet.scaling import GroupScales
from models.tft.config import TftConfig
from models.tft.parameters import export_parameters
from models.training.data import Split
from models.training.task import TrainingTask

MIN_CYCLES = 2  # how often the train part must contain a cycle of the calendar for the network to get it as an input
MIN_TICKS_PER_CYCLE = 4
MIN_WINDOWS_PER_SCALE = 4  # windows' worth of observed ticks that a server needs for a scale of its own
_ANCHOR_WINDOWS = 2048  # windows of the train part that the anchors are fitted to


class FleetTask(TrainingTask[FleetPart, FleetEngine]):
    """The training of a fleet model."""

    ROWS, CONFIG, MANIFEST, TOLERANCE = FleetData, FleetTrainingConfig, FleetManifest, TOLERANCE
    LIBRARIES = ("models.fleet.batches", "models.fleet.initialization", "models.fleet.scales")

    rows: FleetData
    config: FleetTrainingConfig

    def split(self) -> Split[FleetPart]:
        """See `TrainingTask.split`."""
        max_servers = MAX_GROUPS - len(set(self.rows.profiles)) - 1
        if len(self.rows.servers) > max_servers:
            raise DataError(
                f"A model can have scales for {max_servers} servers, and the history has {len(self.rows.servers)}. "
                "Use fewer."
            )
        return split(self.rows, self.filled, self.config)

    @cached_property
    def filled(self) -> Floats:
        """The values with gaps carried forward."""
        return carry_forward(self.rows.values, self.rows.max_gap)

    @cached_property
    def cycles(self) -> tuple[str, ...]:
        """The cycles that the train part contains often enough and that the time grid resolves.

        From a cycle that occurred once the network could only learn a position in time.
        """
        step, train = self.rows.step, self.parts.train
        return tuple(
            name
            for name, seconds in CYCLE_SECONDS.items()
            if (train.stop - train.start) * step >= MIN_CYCLES * seconds and seconds >= MIN_TICKS_PER_CYCLE * step
        )

    @cached_property
    def profiles(self) -> tuple[str, ...]:
        """The profiles of the manifest."""
        return tuple(dict.fromkeys((OTHER_PROFILE, *self.rows.profiles)))

    @cached_property
    def network(self) -> TftConfig:
        """The sizes of the network."""
        names = tuple(metric.name for metric in self.rows.metrics)
        return self.config.make_network(
            fleet_reals(names, self.cycles), targets=len(names), profiles=len(self.profiles),
            embedding_size=self.config.embedding_size,
        )  # fmt: skip

    @cached_property
    def groups(self) -> GroupScales:
        """The scales of the groups, fitted to the train part."""
        from models.fleet.scales import fit_groups

        window = self.config.encoder_length + self.config.horizon
        min_ticks = MIN_WINDOWS_PER_SCALE * window if self.config.own_scales else self.rows.ticks + 1
        return fit_groups(self.rows, self.parts.train.stop, min_ticks)

    @cached_property
    def evaluation(self) -> EvaluationData:
        """The data that forecasts are compared on."""
        from models.fleet.batches import GroupIndex

        server_rows = GroupIndex.build(self.rows, self.groups, self.profiles).server_rows
        return EvaluationData.build(self.rows, self.filled, self.groups, server_rows)

    @cached_property
    def baselines(self) -> dict[str, SeasonalBaseline]:
        """The baselines, fitted to the train part."""
        return fit_baselines(self.evaluation, self.parts.train, self.config.horizon, self.config.levels)

    @cached_property
    def anchors(self) -> tuple[tuple[Anchor, ...], Floats]:
        """The best anchors for the train part, and the quantiles `[M, Q]` of the outcomes' distances from them.

        These are the best that a network can give before it has learned anything.
        """
        evaluation, part, config = self.evaluation, self.parts.train, self.config
        length = min(config.encoder_length, int(part.runs.max()))
        servers, origins = part.spread_windows(_ANCHOR_WINDOWS, length, self.rows.ticks)
        windows = evaluation.scaled[servers[:, None], origins[:, None] + np.arange(1 - length, 1)]
        outcomes = outcome(evaluation.actual, servers, origins, config.horizon)
        anchors = fit_anchors(windows, outcomes)
        residuals = outcomes - anchor_forecast(windows, anchors, config.horizon)
        quantiles = np.nanquantile(residuals.swapaxes(1, 2).reshape(-1, residuals.shape[1]), config.levels, axis=0)
        return anchors, np.asarray(quantiles.T, dtype=np.float32)

    def _scored_windows(self, part: FleetPart) -> tuple[Indices, Indices]:
        """Servers and origins of the windows of a part that are scored."""
        return part.spread_windows(self.config.scored_windows, self.config.encoder_length, self.rows.ticks)

    def count_scored(self, part: FleetPart) -> int:
        """See `TrainingTask.count_scored`."""
        return len(self._scored_windows(part)[0])

    def build_network(self) -> Any:
        """See `TrainingTask.build_network`."""
        from models.fleet.initialization import initialize_weights
        from models.tft.torch_model import build_network

        keep_freed_memory()
        network = build_network(self.network, self.config.levels, self.config.encoder_length, self.config.dropout)
        initialize_weights(network, self.network, self.anchors[1])
        return network

    def prepare_fit(self, network: Any) -> Any:
        """See `TrainingTask.prepare_fit`.

        The weight of a metric in the loss is larger where it moves less within a horizon: otherwise the network would
        learn the volatile metrics only.
        """
        from models.fleet.batches import (
            FleetBatchSampler,
            FleetQuantileModule,
            FleetWindowDataset,
            GroupIndex,
            validation_batches,
        )
        from models.training.lightning import FitInput

        config, data, parts = self.config, self.rows, self.parts
        group_index = GroupIndex.build(data, self.groups, self.profiles)
        windows = FleetWindowDataset(
            data,
            self.filled,
            self.groups,
            network=self.network,
            cycles=self.cycles,
            anchors=self.anchors[0],
            config=config,
        )
        sampler = FleetBatchSampler(parts.train, group_index, data.ticks, config)
        length = min(config.encoder_length, int(parts.validation.runs.max()))
        validation = validation_batches(*self._scored_windows(parts.validation), length, group_index, config.batch_size)
        errors = self.baselines["persistence"].errors
        weights = 1 / np.sqrt(np.maximum((errors[:, -1] - errors[:, 0]).mean(axis=-1), 1e-3))
        weights = np.asarray(weights / weights.mean(), dtype=np.float32)
        module = FleetQuantileModule(network, config, weights, config.epochs * len(sampler))
        return FitInput(module, windows, sampler, validation)

    def export(self, network: Any, out: Path, created: int) -> FleetBundle:
        """See `TrainingTask.export`.

        The canary has two of the newest full windows of the test part: one with its server's scale, one as of an unknown
        server.
        """
        import torch

        data, part, length = self.rows, self.parts.test, self.config.encoder_length
        weights = export_parameters(network, self.network)
        manifest = FleetManifest(
            **self.manifest_fields(created),
            metrics=data.metrics,
            cycles=self.cycles,
            profiles=self.profiles,
            groups=self.groups.names,
            encoder_minimum=self.config.encoder_minimum,
            network=self.network,
            anchors=self.anchors[0],
        )
        servers, origins = np.divmod(part.windows[part.runs == length], data.ticks)
        origin = int(origins.max())
        first, last = servers[origins == origin][[0, -1]].tolist()
        canary: dict[str, NDArray[Any]] = {
            "tick": np.array([data.first + origin], dtype=np.float64),
            "values": np.stack([self.filled[server, origin - length + 1 : origin + 1] for server in (first, last)]),
            "profiles": np.array([self.profiles.index(data.profiles[first]), 0]),
            "groups": np.array([self.evaluation.group_rows[first], len(self.groups.names) - 1]),
        }
        arrays = {**weights, CENTER_KEY: self.groups.center, SCALE_KEY: self.groups.scale}
        bundle = FleetBundle(out, manifest, arrays, canary)
        engine = load_fleet_engine(bundle, "library", torch.get_num_threads())
        return replace(bundle, canary={**canary, "quantiles": engine.forecast(fleet_canary_input(bundle))})

    def load_engine(self, bundle: FleetBundle) -> tuple[FleetEngine, float]:
        """See `TrainingTask.load_engine`."""
        import torch

        engine = load_fleet_engine(bundle, "auto", torch.get_num_threads())
        return engine, canary_difference(bundle, engine)

    def score(self, part: FleetPart, engine: FleetEngine, report: Callable[[float], None]) -> object:
        """See `TrainingTask.score`."""
        return compare(engine, self.evaluation, self.baselines, part, self.config, report=report)
