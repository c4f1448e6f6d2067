"""Trains a bundle on a fleet's history: collects the history, and runs the training in a supervised child.

A resumed training run uses the history that it began with, saved next to its output.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman
from forecastd.fleet.history.csv_history import data_from_csv
from forecastd.fleet.history.training_data import data_from_store, describe_data, simulate_data
from forecastd.fleet.window.store import FILE_NAME
from forecastd.runtime.jobs import JobRunner
from forecastd.settings import Settings
from forecastd.training.run import RowSource, TrainedBundle, TrainingListener, TrainingRequest, run_training
from models.fleet.config import FleetTrainingConfig
from models.fleet.dataset import FleetData

DEFAULT_NAME = "trained"


@dataclass(frozen=True, kw_only=True)
class FleetTrainingRequest(TrainingRequest):
    """What to train on: the last `history` hours of the fleet, `simulate`, or a table at `data`.

    `servers`: the maximum number.
    """

    config: FleetTrainingConfig
    history: float | None = None
    simulate: str | None = None
    data: Path | None = None
    servers: int = 100


def train_fleet(
    settings: Settings, request: FleetTrainingRequest, clock: Clock, listener: TrainingListener, jobs: JobRunner
) -> TrainedBundle:
    """Train as `request` says, or resume an interrupted training run.

    Raises:
        NeedsHuman: the history, an option or the output is invalid, or no child could train.
        ModelError: the history is too short, or the training was interrupted (`TrainingInterrupted`).
    """
    now = clock.now()
    request.config.check()
    if sum(source is not None for source in (request.history, request.simulate, request.data)) > 1:
        raise NeedsHuman("--history, --simulate and --data exclude each other. Give only one of them.")
    # A model must not treat a real server as the simulated server of the same name.
    config = replace(request.config, own_scales=request.simulate is None)
    source = request.simulate or str((request.data or settings.fleet_state_path).absolute())
    key = json.dumps([source, request.history, request.until, request.servers, settings.fleet.step])
    return run_training(
        settings,
        replace(request, config=config),
        RowSource(key, lambda: _collect_history(settings, request, now), describe_data),
        default_out=settings.fleet_models_path / DEFAULT_NAME,
        clock=clock,
        listener=listener,
        jobs=jobs,
    )


def _collect_history(settings: Settings, request: FleetTrainingRequest, now: float) -> FleetData:
    """The requested history. Raises NeedsHuman."""
    until = now if request.until is None else request.until
    if request.simulate is not None:
        return simulate_data(request.simulate, until=until, step=settings.fleet.step, seed=request.config.seed)
    if request.data is not None:
        return data_from_csv(request.data, max_series=request.servers)
    hours = settings.fleet.history_hours if request.history is None else request.history
    path = settings.fleet_state_path / FILE_NAME
    return data_from_store(path, hours=hours, now=until, step=settings.fleet.step, max_servers=request.servers)
