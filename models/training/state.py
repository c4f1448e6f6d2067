"""The directory `NAME.training` next to a bundle: what an unfinished training run keeps on disk.

`state.json` holds the kind and the options, `data.safetensors` the rows, so that a training run is continued without its
source and never on newer rows; the checkpoints are next to them. The directory is removed once the bundle is written.

There are two locks, and each is released when its process ends. The process that a user started locks the directory
(`lock_output`): two training runs never share one. The process that fits and writes locks the rows (`lock_rows`): a process
that replaces another one, which is being stopped or has lost its parent, waits until that one has ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save  # not `save_file`: its error for a full disk is not an OSError

from models.errors import BundleError, DataError, TrainingInterrupted
from models.training.config import MARKET, TrainingConfig
from models.training.data import TrainingRows

RowsT = TypeVar("RowsT", bound=TrainingRows)
ConfigT = TypeVar("ConfigT", bound=TrainingConfig)

STATE_FILE, DATA_FILE = "state.json", "data.safetensors"
BEST_CHECKPOINT, LAST_CHECKPOINT = "best.ckpt", "last.ckpt"
_REPLACED = (STATE_FILE, BEST_CHECKPOINT, LAST_CHECKPOINT)  # each is written under another name and then renamed
STATE_FILES = (*_REPLACED, DATA_FILE, *(f"{name}.new" for name in _REPLACED))
# A process that is being stopped releases its lock within this number of attempts, this long apart.
_LOCK_ATTEMPTS, _LOCK_POLL_SECONDS = 600, 0.05


def state_directory(out: Path) -> Path:
    """The directory of the unfinished training of the bundle `out`."""
    return out.with_name(f"{out.name}.training")


def has_checkpoint(out: Path) -> bool:
    """Whether the unfinished training of `out` has finished an epoch."""
    return (state_directory(out) / BEST_CHECKPOINT).exists()


def interrupted(out: Path) -> TrainingInterrupted:
    """The error for a training of `out` that was interrupted."""
    return TrainingInterrupted(state_directory(out), has_checkpoint=has_checkpoint(out))


@contextmanager
def lock_output(out: Path) -> Iterator[None]:
    """Hold the lock of the unfinished training of `out`, against this process and all others.

    Creates its directory and missing parents, and removes those that are still empty at the end.

    Raises:
        BundleError: (check "busy") another training run holds the lock.
        OSError: the directory cannot be created.
    """
    path = state_directory(out)
    new_directories = [directory for directory in (path, *path.parents) if not directory.exists()]
    descriptor = None
    while descriptor is None:
        path.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = _lock(path)
        except BlockingIOError as error:
            raise BundleError(
                f"Another training run is active in {path}. Wait until it ends, stop it, or choose another --out.",
                check="busy",
            ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # not empty, or removed already
            path.rmdir()
        os.close(descriptor)
        with suppress(OSError):
            for directory in new_directories[1:]:
                directory.rmdir()


@contextmanager
def lock_rows(out: Path) -> Iterator[bool]:
    """Hold the lock of the rows of the unfinished training of `out`; waits for a process that is being stopped.

    Yields whether there is an unfinished training run.

    Raises:
        BundleError: (check "busy") another process holds the lock and does not end.
        OSError: the rows cannot be opened.
    """
    path, timer = state_directory(out) / DATA_FILE, Event()
    for _ in range(_LOCK_ATTEMPTS):
        with suppress(BlockingIOError):
            descriptor = _lock(path)
            break
        timer.wait(_LOCK_POLL_SECONDS)
    else:
        raise BundleError(
            f"Another process is running in {path.parent} and does not end. Stop it, or choose another --out.",
            check="busy",
        )
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(path: Path) -> int | None:
    """A descriptor of a file or directory, which holds its lock until it is closed; None if it does not exist.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: it cannot be opened.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass  # the process that held the lock has removed it
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


@dataclass(frozen=True, eq=False)
class TrainingState:
    """An unfinished training run on disk.

    kind:     name of the kind, see `models.registry`
    metadata: what `TrainingRows.to_metadata` gave
    arrays:   of the rows, by the names in `TrainingRows.ARRAYS`
    config:   the options, as JSON has them
    finished: the network is fitted, the bundle is not written yet
    """

    path: Path
    kind: str
    metadata: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    config: dict[str, object]
    finished: bool

    @property
    def data_sha256(self) -> str:
        """Hash of the rows."""
        return str(self.metadata.get("data_sha256", ""))

    @property
    def request(self) -> str:
        """What the user asked for; see `TrainingRows`."""
        return str(self.metadata.get("request", ""))

    def restore_rows(self, rows_type: type[RowsT]) -> RowsT:
        """The rows, as a value of the kind's type.

        Raises:
            DataError: another version wrote them.
        """
        try:
            return rows_type.from_metadata(self.metadata, self.arrays)
        except (ValueError, KeyError, TypeError) as error:
            raise unreadable(self.path, error) from error

    def restore_config(self, config_type: type[ConfigT]) -> ConfigT:
        """The options, as a value of the kind's type.

        Raises:
            DataError: this version has other options.
        """
        try:
            return config_type(**{**self.config, "levels": tuple(self.config["levels"])})  # type: ignore[arg-type]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"The interrupted training at {self.path} has other options than this version ({error}). "
                "Start again with --force, or remove the directory."
            ) from error

    def mark_finished(self) -> None:
        """Record that the network is fitted."""
        replace(self, finished=True).write()

    def write(self) -> None:
        """Write `state.json`, whole or not at all."""
        document = {"kind": self.kind, "config": self.config, "data": self.metadata, "finished": self.finished}
        staging = self.path / f"{STATE_FILE}.new"
        staging.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        staging.replace(self.path / STATE_FILE)

    def remove(self) -> None:
        """Remove its files. `lock_output` removes the empty directory."""
        _clear(self.path)


def load(out: Path) -> TrainingState | None:
    """The unfinished training of `out`, or None.

    Raises:
        DataError: there is one, and it cannot be read.
    """
    path = state_directory(out)
    if not (path / STATE_FILE).exists():
        return None
    try:
        document = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        return TrainingState(
            path=path,
            kind=str(document.get("kind", MARKET)),
            metadata=dict(document["data"]),
            arrays=load_file(path / DATA_FILE),
            config=document["config"],
            finished=bool(document["finished"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    """The error for a state that this version cannot read."""
    return DataError(
        f"The interrupted training at {path} cannot be read ({error}). Start again with --force, or remove the directory."
    )


def open_or_create(out: Path, data: TrainingRows, config: TrainingConfig, *, discard: bool) -> TrainingState:
    """The unfinished training of `out` for this data and these options, or a new one. The caller holds `lock_output(out)`.

    Raises:
        BundleError: (check "exists") without `discard`, and the directory holds a training run with other data or options, or
            files of something else.
        DataError: without `discard`, and the training in the directory cannot be read.
    """
    options = json.loads(json.dumps(asdict(config)))
    try:
        state = load(out)
        if state is not None and state.kind == data.KIND:
            state.restore_rows(type(data))
    except DataError:
        if not discard:
            raise
        state = None
    if state is not None and state.config == options and state.data_sha256 == data.data_sha256:
        return state
    path = state_directory(out)
    if state is not None and not discard:
        raise BundleError(
            f"A training run with other options or other data was interrupted at {path}. Repeat its command to continue it, "
            "add --finish to write a bundle from its best checkpoint, or discard it with --force.",
            check="exists",
        )
    path.mkdir(parents=True, exist_ok=True)
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in STATE_FILES)
    if state is None and foreign and not discard:
        raise BundleError(
            f"{path}, where the training would keep its checkpoints, contains {foreign[0]}, which is not part of a training "
            "run. Move it, choose another --out, or discard it with --force.",
            check="exists",
        )
    with lock_rows(out):
        _clear(path)
    arrays = {name: np.ascontiguousarray(getattr(data, name)) for name in data.ARRAYS}
    state = TrainingState(path, data.KIND, data.to_metadata(), arrays, options, finished=False)
    (path / DATA_FILE).write_bytes(save(arrays))
    state.write()
    return state


def _clear(directory: Path) -> None:
    for entry in directory.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
