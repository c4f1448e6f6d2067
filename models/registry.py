"""The kinds of model that can be trained. This is the only module that knows all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.bundle.manifest import Manifest, read_kind
from models.bundle.records import FLEET_KIND
from models.fleet.train import FleetTask
from models.market.train import MarketTask
from models.training.config import FLEET, MARKET
from models.training.task import TrainingTask

TASKS: dict[str, type[TrainingTask[Any, Any]]] = {MARKET: MarketTask, FLEET: FleetTask}


def is_fleet_bundle(path: Path) -> bool:
    """Whether the manifest at `path` says that the bundle is a fleet's. Nothing else of the bundle is checked.

    Raises:
        BundleError: there is no bundle, or its manifest is not valid JSON.
    """
    return read_kind(path) == FLEET_KIND


def read_any_manifest(path: Path) -> Manifest:
    """The manifest of the bundle at `path`, of whichever kind.

    Raises:
        BundleError: as the kind's own reader does.
    """
    manifests = {task.MANIFEST.KIND: task.MANIFEST for task in TASKS.values()}
    return manifests.get(read_kind(path), MarketTask.MANIFEST).read(path)  # which refuses an unknown kind
