"""What a kind of model implements to be trained: the steps of one training run, in the order in which they are called.

The steps are called by `models.training.run`, which is the same for every kind. A kind is registered in
`models.registry`.

Invariant: importing this module, or the module of a kind's task, imports no torch. A method that needs torch imports
it.
"""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from models.bundle.bundle import Bundle
from models.bundle.manifest import Manifest
from models.bundle.records import Interval, TrainingRecord
from models.training.config import TrainingConfig
from models.training.data import PartT, Split, TrainingRows

EngineT = TypeVar("EngineT")


class TrainingTask(ABC, Generic[PartT, EngineT]):
    """One training run of a kind: its rows, its options, and the parts of the rows.

    A kind keeps values that follow from these alone as cached properties: scales, baselines, anchors. `LIBRARIES`: the
    modules that it imports in addition to torch and Lightning. `TOLERANCE`: share of the quantile range, the largest
    difference between an engine and its network.
    """

    ROWS: ClassVar[type[TrainingRows]]
    CONFIG: ClassVar[type[TrainingConfig]]
    MANIFEST: ClassVar[type[Manifest]]
    LIBRARIES: ClassVar[tuple[str, ...]]
    TOLERANCE: ClassVar[float]

    rows: TrainingRows
    config: TrainingConfig

    def __init__(self, rows: TrainingRows, config: TrainingConfig) -> None:
        """Cut the rows. Raises DataError: they are too few or too broken for these options."""
        self.rows, self.config = rows, config
        self.parts = self.split()

    @abstractmethod
    def split(self) -> Split[PartT]:
        """Cut the rows into train, validation and test. Raises DataError."""

    @abstractmethod
    def count_scored(self, part: PartT) -> int:
        """The number of windows that `score` scores; those of the validation part are validated on in every epoch too."""

    @abstractmethod
    def build_network(self) -> Any:
        """The library's network, untrained. Draws from torch's global generator, which was seeded just before."""

    @abstractmethod
    def prepare_fit(self, network: Any) -> Any:
        """The `models.training.lightning.FitInput` of the network."""

    @abstractmethod
    def export(self, network: Any, out: Path, created: int) -> Bundle[Any]:
        """The bundle of the fitted network, in memory, without scores; its canary has the network's own quantiles.

        Raises:
            TrainingDiverged: the weights are not finite.
        """

    @abstractmethod
    def load_engine(self, bundle: Bundle[Any]) -> tuple[EngineT, float]:
        """The engine that will run the bundle, and its difference from the canary as a share of the quantile range."""

    @abstractmethod
    def score(self, part: PartT, engine: EngineT, report: Callable[[float], None]) -> object:
        """Scores of the model and the baselines on the same windows; `report` gets the share that is done."""

    def manifest_fields(self, created: int) -> dict[str, Any]:
        """The fields that every kind of manifest has, without scores and records of the files."""
        rows, config, parts = self.rows, self.config, self.parts
        start, end = rows.interval(0, rows.ticks)
        intervals = {
            part.name: Interval(*rows.interval(part.start, part.stop), len(part.windows))
            for part in (parts.train, parts.validation, parts.test)
        }
        training = TrainingRecord(
            start, end, rows.count, rows.data_sha256, rows.source, rows.synthetic, created, intervals, asdict(config)
        )
        return {
            "name": config.name,
            "step": rows.step,
            "encoder_length": config.encoder_length,
            "horizon": config.horizon,
            "levels": config.levels,
            "training": training,
            "versions": _library_versions(),
            "scores": {},
            "files": {},
        }


def _library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that take part in a training run."""
    names = ("torch", "lightning", "pytorch-forecasting", "numpy", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
