"""Trains a bundle on a fleet's history: collects the history, and runs the training in a supervised child.

A resumed training run uses the history that it began with, saved next to its output.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman
from forecastd.fleet.history import training_data
from forecastd.fleet.history.csv_history import data_from_csv
from forecastd.fleet.window.store import FILE_NAME
from forecastd.runtime.jobs import JobRunner
from forecastd.settings import Settings
from forecastd.training.run import TrainingListener, TrainingRun, bundle_name, run_training, saved_rows
from models.fleet.config import FleetTrainingConfig
from models.fleet.dataset import FleetData
from models.fleet.manifest import FleetManifest

DEFAULT_NAME = "trained"


@dataclass(frozen=True)
class FleetTrainingRequest:
    """What to train on, and where to write: the last `hours` of history, `simulate`, or a table at `data`.

    `until`: unix seconds, default now. `servers`: the maximum number. `out`: default the directory of the fleet's
    models, under the model's name.
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


@dataclass(frozen=True)
class FleetTrainingResult:
    """A written bundle. A running fleet finds it by its name below `models`."""

    path: Path
    manifest: FleetManifest
    models: Path


def train_fleet(
    settings: Settings, request: FleetTrainingRequest, clock: Clock, listener: TrainingListener, jobs: JobRunner
) -> FleetTrainingResult:
    """Train as `request` says, or resume an interrupted training run.

    Raises:
        NeedsHuman: the history, an option or the output is invalid, or no child could train.
        ModelError: the history is too short, or the training was interrupted (`TrainingInterrupted`).
    """
    now = clock.now()
    request.config.check()
    if sum(source is not None for source in (request.history, request.simulate, request.data)) > 1:
        raise NeedsHuman("--history, --simulate and --data exclude each other. Give only one of them.")
    out = request.out or settings.fleet_models_path / DEFAULT_NAME
    # A model must not treat a real server as the simulated server of the same name.
    config = replace(request.config, name=bundle_name(out), own_scales=request.simulate is None)
    run = TrainingRun(config, out, force=request.force, finish=request.finish)

    def rows() -> FleetData:
        key = _source_key(settings, request)
        interrupted = saved_rows(run, key, FleetData)
        if interrupted is not None:
            listener.on_message(f"resuming the interrupted training: {training_data.describe_data(interrupted)}")
            return interrupted
        data = replace(_collect_history(settings, request, now), request=key)
        listener.on_message(training_data.describe_data(data))
        return data

    manifest = run_training(settings, run, rows, clock, listener, jobs=jobs, read_manifest=FleetManifest.read)
    return FleetTrainingResult(out, manifest, settings.fleet_models_path)


def _collect_history(settings: Settings, request: FleetTrainingRequest, now: float) -> FleetData:
    """The requested history. Raises NeedsHuman."""
    until = now if request.until is None else request.until
    if request.simulate is not None:
        return training_data.simulate_data(
            request.simulate, until=until, step=settings.fleet.step, seed=request.config.seed
        )
    if request.data is not None:
        return data_from_csv(request.data, max_series=request.servers)
    hours = settings.fleet.history_hours if request.history is None else request.history
    path = settings.fleet_state_path / FILE_NAME
    return training_data.data_from_store(
        path, hours=hours, now=until, step=settings.fleet.step, max_servers=request.servers
    )


def _source_key(settings: Settings, request: FleetTrainingRequest) -> str:
    source = request.simulate or (
        str(request.data.absolute()) if request.data else str(settings.fleet_state_path.absolute())
    )
    return json.dumps([source, request.history, request.until, request.servers, settings.fleet.step])
