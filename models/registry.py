"""The kinds of model that can be trained. This is the only module that knows all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.bundle.fields import parse_object
from models.bundle.files import load_manifest
from models.bundle.records import FLEET_KIND
from models.fleet.train import FleetTask
from models.market.train import MarketTask
from models.training.config import TrainingConfig
from models.training.state import TrainingState
from models.training.task import FLEET, MARKET, TrainedManifest, TrainingRows, TrainingTask

AnyTask = TrainingTask[Any, Any, Any, Any, Any, Any, Any]

TASKS: dict[str, AnyTask] = {MARKET: MarketTask(), FLEET: FleetTask()}


def get_task(kind: str) -> AnyTask:
    """The task of this kind.

    Raises:
        KeyError: there is no such kind.
    """
    return TASKS[kind]


def restore(state: TrainingState) -> tuple[TrainingRows, TrainingConfig]:
    """The rows and the options of an unfinished training run.

    Raises:
        DataError: another version wrote them.
    """
    try:
        task = get_task(state.kind)
    except KeyError as error:
        raise state.unreadable(error) from error
    rows: TrainingRows = state.restore_rows(task.rows_type)
    return rows, state.restore_config(task.config_type)


def is_fleet_bundle(path: Path) -> bool:
    """Whether the manifest at `path` says that the bundle is a fleet's. Nothing else of the bundle is checked.

    Raises:
        BundleError: there is no bundle, or its manifest is not valid JSON.
    """
    return load_manifest(path, lambda content, _: parse_object(content).take("kind", str)) == FLEET_KIND


def read_trained_manifest(path: Path) -> TrainedManifest:
    """The manifest of the bundle at `path`, of whichever kind.

    Raises:
        BundleError: as the kind's own reader does.
    """
    manifest: TrainedManifest = get_task(FLEET if is_fleet_bundle(path) else MARKET).read_manifest(path)
    return manifest
