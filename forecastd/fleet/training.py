"""From a fleet's history to a trained bundle: gathers the history, and has a supervised child train on it.

An interrupted training goes on from the history it began with, kept beside its output.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman
from forecastd.fleet.history import training_data
from forecastd.fleet.history.csv_history import data_from_csv
from forecastd.settings import Settings
from forecastd.training.run import TrainingListener, TrainingRun, bundle_name, run_training, saved_rows
from models.fleet.config import FleetTrainingConfig
from models.fleet.dataset import FleetData
from models.fleet.manifest import FleetManifest
from models.training.run import check_config

DEFAULT_NAME = "trained"


@dataclass(frozen=True)
class FleetTrainingRequest:
    """What a user asks a fleet's training for: one of a history of so many hours, `simulate`, or a table at `data`.

    `until` in unix seconds, now when not given; `servers`: at most so many. `out`: below the directory of the fleet's models
    by its name when not given. `faults`: what its first process shall bring on itself, for a trial.
    """

    config: FleetTrainingConfig
    out: Path | None = None
    history: float | None = None
    simulate: str | None = None
    data: Path | None = None
    until: float | None = None
    servers: int = 100
    force: bool = False
    finish: bool = False
    faults: str = ""


@dataclass(frozen=True)
class FleetTrainingResult:
    """A written bundle. A fleet that runs finds it below `models`, by its name."""

    path: Path
    manifest: FleetManifest
    models: Path


def train_fleet(
    settings: Settings, request: FleetTrainingRequest, clock: Clock, listener: TrainingListener
) -> FleetTrainingResult:
    """Train what `request` asks for, or go on where it was interrupted.

    Raises:
        NeedsHuman: the history, an option or the output cannot work as they are, or no child could train.
        ModelError: the history cannot carry the training, or it was interrupted (`TrainingInterrupted`).
    """
    now = clock.now()
    check_config(request.config)
    if sum(source is not None for source in (request.history, request.simulate, request.data)) > 1:
        raise NeedsHuman("--history, --simulate and --data are three sources of a history. Give one of them.")
    out = request.out or settings.fleet_models_path / DEFAULT_NAME
    # A simulated server's name says nothing: a model must not take a real one of that name for it.
    config = replace(request.config, name=bundle_name(out), own_scales=request.simulate is None)
    run = TrainingRun(config, out, force=request.force, finish=request.finish, faults=request.faults)

    def rows() -> FleetData:
        key = _source_key(settings, request)
        interrupted = saved_rows(run, key)
        if isinstance(interrupted, FleetData):
            listener.on_message(f"going on with the interrupted training: {training_data.describe_data(interrupted)}")
            return interrupted
        data = replace(_collect_history(settings, request, now), request=key)
        listener.on_message(training_data.describe_data(data))
        return data

    manifest = run_training(settings, run, rows, clock, listener)
    if not isinstance(manifest, FleetManifest):
        raise TypeError(f"This is no fleet's manifest: {type(manifest).__name__}")
    return FleetTrainingResult(out, manifest, settings.fleet_models_path)


def _collect_history(settings: Settings, request: FleetTrainingRequest, now: float) -> FleetData:
    """The history asked for. Raises NeedsHuman."""
    until = now if request.until is None else request.until
    if request.simulate is not None:
        return training_data.simulate_data(
            request.simulate, until=until, step=settings.fleet_step, seed=request.config.seed
        )
    if request.data is not None:
        return data_from_csv(request.data, max_series=request.servers)
    hours = settings.fleet_history_hours if request.history is None else request.history
    path = settings.fleet_state_path / training_data.STORE_NAME
    return training_data.data_from_store(
        path, hours=hours, now=until, step=settings.fleet_step, max_servers=request.servers
    )


def _source_key(settings: Settings, request: FleetTrainingRequest) -> str:
    source = request.simulate or (
        str(request.data.absolute()) if request.data else str(settings.fleet_state_path.absolute())
    )
    return json.dumps([source, request.history, request.until, request.servers, settings.fleet_step])
