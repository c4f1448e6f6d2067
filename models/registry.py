"""What kinds of model can be trained, and what each does with its rows: one machinery of checkpoints serves them all.

A kind's module is imported when it is asked for by name; the name stands in the state of an unfinished training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from models.bundle.fields import parse_object
from models.bundle.files import load_manifest
from models.bundle.records import TrainingRecord
from models.fleet import manifest as fleet
from models.training.config import TrainingConfig
from models.training.progress import TrainingProgress

MARKET, FLEET = "market", "fleet"


class TrainingRows(Protocol):
    """What a training learns from. `ARRAYS`: the fields that are kept as arrays; the others are told in JSON."""

    KIND: ClassVar[str]
    ARRAYS: ClassVar[tuple[str, ...]]

    @property
    def data_sha256(self) -> str: ...

    @property
    def request(self) -> str: ...

    def to_metadata(self) -> dict[str, object]:
        """The fields that are no arrays, for JSON."""
        ...

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], arrays: Mapping[str, Any]) -> Self:
        """What was described, with its arrays.

        Raises:
            ValueError, KeyError, TypeError: it is not of this version.
        """
        ...


class TrainedManifest(Protocol):
    """The manifest of a bundle that was trained."""

    @property
    def sha256(self) -> str: ...

    @property
    def training(self) -> TrainingRecord: ...


@dataclass(frozen=True)
class TrainingTask:
    """One kind of training.

    check:         refuses options that make no sense (DataError)
    prepare:       refuses rows that cannot carry the training with these options (DataError)
    carry_on:      from an unfinished training to a written bundle; keywords `created`, `force`, `finish`
    read_manifest: of the bundle at a path (BundleError)
    """

    rows_type: type[TrainingRows]
    config_type: type[TrainingConfig]
    check_options: Callable[[Any], None]
    check_data: Callable[[Any, Any], None]
    resume: Callable[..., TrainedManifest]
    read_manifest: Callable[[Path], TrainedManifest]


TrainingCallback = Callable[[TrainingProgress], None]


def get_task(name: str) -> TrainingTask:
    """The kind of this name.

    Raises:
        KeyError: there is none.
    """
    if name == FLEET:
        from models.fleet.train import TASK

        return TASK
    if name == MARKET:
        from models.market.train import TASK as MARKET_TRADE

        return MARKET_TRADE
    raise KeyError(name)


def is_fleet_bundle(path: Path) -> bool:
    """Whether the bundle at `path` says that it is a fleet's. Nothing else of it is looked at.

    Raises:
        BundleError: there is no bundle, or its manifest is none.
    """
    return load_manifest(path, lambda content, _: parse_object(content).take("kind", str)) == fleet.KIND


def read_trained_manifest(path: Path) -> TrainedManifest:
    """The manifest of the bundle at `path`, of whichever kind.

    Raises:
        BundleError: as the kind's own reader does.
    """
    return get_task(FLEET if is_fleet_bundle(path) else MARKET).read_manifest(path)


def library_versions() -> dict[str, str]:
    """Of what has a part in a training, for the manifest."""
    import platform
    from importlib.metadata import version

    names = ("torch", "lightning", "pytorch-forecasting", "numpy", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
