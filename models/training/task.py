"""The interface that a kind of model implements to be trained: the protocols of its rows and its manifest, and the
steps of its training.

The steps are called by `models.training.run`, which is the same for every kind. A kind is registered in
`models.registry`.

Invariant: importing this module, or the module of a kind's task, imports no torch. A method that needs torch imports
it.
"""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from models.bundle.records import TrainingRecord
from models.training.config import TrainingConfig
from models.training.progress import TrainingProgress

MARKET, FLEET = "market", "fleet"  # names of kinds; they are written in the state of an unfinished training run

TrainingCallback = Callable[[TrainingProgress], None]


class TrainingRows(Protocol):
    """What a training run learns from. `ARRAYS`: the fields that are stored as arrays; the others are stored as JSON."""

    KIND: ClassVar[str]
    ARRAYS: ClassVar[tuple[str, ...]]

    @property
    def data_sha256(self) -> str: ...

    @property
    def request(self) -> str: ...

    def to_metadata(self) -> dict[str, object]:
        """The fields that are not arrays, for JSON."""
        ...

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], arrays: Mapping[str, Any]) -> Self:
        """The rows with this metadata and these arrays.

        Raises:
            ValueError, KeyError, TypeError: the metadata was written by another version.
        """
        ...


class TrainedManifest(Protocol):
    """The manifest of a bundle that was trained."""

    @property
    def sha256(self) -> str: ...

    @property
    def training(self) -> TrainingRecord: ...


@dataclass(frozen=True)
class BatchCounts:
    """How many batches there are in an epoch, in each validation, and in the scoring of the validation and test parts."""

    train: int
    validation: int
    scoring: int


RowsT = TypeVar("RowsT", bound=TrainingRows)
ConfigT = TypeVar("ConfigT", bound=TrainingConfig)
PartsT = TypeVar("PartsT")  # the rows cut into train, validation and test
RunT = TypeVar("RunT")  # rows, options, parts, and what follows from them alone
BundleT = TypeVar("BundleT")
EngineT = TypeVar("EngineT")
ManifestT = TypeVar("ManifestT", bound=TrainedManifest)


class TrainingTask(ABC, Generic[RowsT, ConfigT, PartsT, RunT, BundleT, EngineT, ManifestT]):
    """One kind of training: what differs between kinds, in the order in which it is called."""

    rows_type: type[RowsT]
    config_type: type[ConfigT]

    @abstractmethod
    def check_options(self, config: ConfigT) -> None:
        """Refuse options of this kind that make no sense. Raises DataError, which names the option."""

    @abstractmethod
    def check_data(self, rows: RowsT, config: ConfigT) -> None:
        """Refuse rows that are too few or too broken for these options. Raises DataError."""

    @abstractmethod
    def split(self, rows: RowsT, config: ConfigT) -> PartsT:
        """Cut the rows into train, validation and test. Raises DataError."""

    @abstractmethod
    def count_batches(self, rows: RowsT, config: ConfigT, parts: PartsT) -> BatchCounts:
        """How much work the training is."""

    @abstractmethod
    def load_libraries(self) -> None:
        """Import what the following steps need in addition to torch and Lightning, so that the import counts as progress."""

    @abstractmethod
    def make_run(self, rows: RowsT, config: ConfigT, parts: PartsT) -> RunT:
        """Fit everything but the network: scales, baselines, anchors."""

    @abstractmethod
    def build_network(self, run: RunT) -> Any:
        """The library's network, untrained. Draws from torch's global generator, which was seeded just before."""

    @abstractmethod
    def make_module(self, run: RunT, network: Any) -> tuple[Any, tuple[Any, Any]]:
        """The `models.training.lightning.BaseModule` of the network, and its loaders of train and validation batches."""

    @abstractmethod
    def export(self, run: RunT, network: Any, out: Path, created: int) -> BundleT:
        """The bundle of the fitted network, in memory, without scores. Raises TrainingDiverged."""

    @abstractmethod
    def check_engine(self, bundle: BundleT, network: Any) -> tuple[BundleT, EngineT]:
        """The bundle with its canary, and the engine that will run it.

        Raises:
            BundleError: (check "canary") the engine differs from the network.
        """

    @abstractmethod
    def score(self, run: RunT, engine: EngineT, report: Callable[[float], None]) -> dict[str, object]:
        """Scores of the validation and the test part; `report` gets the number of batches that are scored."""

    @abstractmethod
    def write(self, out: Path, bundle: BundleT, scores: dict[str, object], *, replace_old: bool) -> ManifestT:
        """Write the bundle, whole or not at all. Raises BundleError (check "exists") and OSError."""

    @abstractmethod
    def read_manifest(self, path: Path) -> ManifestT:
        """The manifest of the bundle at `path`. Raises BundleError."""


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that take part in a training run, for the manifest."""
    names = ("torch", "lightning", "pytorch-forecasting", "numpy", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
