"""What kinds of model can be trained, and what each does with its rows: one machinery of checkpoints serves them all.

A kind's module is imported when it is asked for by name; the name stands in the state of an unfinished training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from models.bundlefiles import read_description
from models.config import TrainingConfig
from models.fleet import manifest as fleet
from models.progress import Progress
from models.records import Training
from models.strict import read_object

MARKET, FLEET = "market", "fleet"


class Rows(Protocol):
    """What a training learns from. `ARRAYS`: the fields that are kept as arrays; the others are told in JSON."""

    KIND: ClassVar[str]
    ARRAYS: ClassVar[tuple[str, ...]]

    @property
    def data_sha256(self) -> str: ...

    @property
    def request(self) -> str: ...

    def described(self) -> dict[str, object]:
        """The fields that are no arrays, for JSON."""
        ...

    @classmethod
    def restored(cls, described: Mapping[str, Any], arrays: Mapping[str, Any]) -> Self:
        """What was described, with its arrays.

        Raises:
            ValueError, KeyError, TypeError: it is not of this version.
        """
        ...


class Made(Protocol):
    """The manifest of a bundle that was trained."""

    @property
    def sha256(self) -> str: ...

    @property
    def training(self) -> Training: ...


@dataclass(frozen=True)
class Kind:
    """One kind of training.

    check:         refuses options that make no sense (DataError)
    prepare:       refuses rows that cannot carry the training with these options (DataError)
    carry_on:      from an unfinished training to a written bundle; keywords `created`, `force`, `finish`
    read_manifest: of the bundle at a path (BundleError)
    """

    rows: type[Rows]
    config: type[TrainingConfig]
    check: Callable[[Any], None]
    prepare: Callable[[Any, Any], None]
    carry_on: Callable[..., Made]
    read_manifest: Callable[[Path], Made]


Tell = Callable[[Progress], None]


def kind_of(name: str) -> Kind:
    """The kind of this name.

    Raises:
        KeyError: there is none.
    """
    if name == FLEET:
        from models.fleet.training import TRADE

        return TRADE
    if name == MARKET:
        from models.market import TRADE as MARKET_TRADE

        return MARKET_TRADE
    raise KeyError(name)


def is_fleet(path: Path) -> bool:
    """Whether the bundle at `path` says that it is a fleet's. Nothing else of it is looked at.

    Raises:
        BundleError: there is no bundle, or its manifest is none.
    """
    return read_description(path, lambda content, _: read_object(content).take("kind", str)) == fleet.KIND


def read_made(path: Path) -> Made:
    """The manifest of the bundle at `path`, of whichever kind.

    Raises:
        BundleError: as the kind's own reader does.
    """
    return kind_of(FLEET if is_fleet(path) else MARKET).read_manifest(path)


def versions() -> dict[str, str]:
    """Of what has a part in a training, for the manifest."""
    import platform
    from importlib.metadata import version

    names = ("torch", "lightning", "pytorch-forecasting", "numpy", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
