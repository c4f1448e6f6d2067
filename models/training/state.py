"""What an unfinished training keeps on disk, beside the bundle it will become: `NAME.training`.

`state.json` says what is being trained, `data.safetensors` holds the very rows, so that going on needs no source and meets
no newer candles; the checkpoints lie beside them. All of it is thrown away once the bundle is written.

Two locks, each ending with its process. Who wants a training holds the directory (`hold`): two never share one. Who fits
and writes is alone with the rows (`alone`): where one process takes over from another that is being ended, or whose
parent was killed, it begins when the other is gone.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event

import numpy as np

from models.errors import BundleError, DataError
from models.registry import MARKET, TrainingRows, get_task
from models.training.config import TrainingConfig

STATE_FILE, DATA_FILE = "state.json", "data.safetensors"
BEST_CHECKPOINT, LAST_CHECKPOINT = "best.ckpt", "last.ckpt"
STATE_FILES = (
    STATE_FILE,
    f"{STATE_FILE}.new",
    DATA_FILE,
    BEST_CHECKPOINT,
    LAST_CHECKPOINT,
    f"{BEST_CHECKPOINT}.new",
    f"{LAST_CHECKPOINT}.new",
)
_LOCK_ATTEMPTS, _LOCK_POLL_SECONDS = (
    600,
    0.05,
)  # how often to look, and the seconds between, whether a process that is being ended is gone


def state_directory(out: Path) -> Path:
    """Where the unfinished training of the bundle `out` is kept."""
    return out.with_name(f"{out.name}.training")


@contextmanager
def lock_output(out: Path) -> Iterator[None]:
    """Keep every other training, of this process or another, away from the unfinished training of `out`.

    Makes its directory and those above it where they lack, and takes those away again that stay empty.

    Raises:
        BundleError: (check "busy") another training holds it.
        OSError: the directory cannot be made.
    """
    path = state_directory(out)
    new_directories = [directory for directory in (path, *path.parents) if not directory.exists()]
    descriptor = _lock_directory(path)
    try:
        yield
    finally:
        with suppress(OSError):  # not empty, or gone already
            path.rmdir()
        os.close(descriptor)
        with suppress(OSError):
            for directory in new_directories[1:]:
                directory.rmdir()


def _lock_directory(path: Path) -> int:
    """A descriptor of the directory, made if need be, that holds its lock until it is closed."""
    while True:
        path.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # taken away by the one who held it
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            raise BundleError(
                f"Another training is at work in {path}. Wait for its end, stop it, or choose another --out.",
                check="busy",
            ) from error
        if _is_same_file(path, descriptor):
            return descriptor
        os.close(descriptor)


@contextmanager
def lock_rows(out: Path) -> Iterator[bool]:
    """Be the only process that goes on with the unfinished training of `out`; waits for one that is being ended.

    Gives whether there is an unfinished training at all.

    Raises:
        BundleError: (check "busy") another process is at it and does not end.
        OSError: the rows cannot be opened.
    """
    descriptor = _lock_file(state_directory(out) / DATA_FILE)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock_file(path: Path) -> int | None:
    """A descriptor of the rows that holds their lock until it is closed; None where there are none."""
    timer = Event()
    for _ in range(_LOCK_ATTEMPTS):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(path, descriptor):
                return descriptor
        os.close(descriptor)
        timer.wait(_LOCK_POLL_SECONDS)
    raise BundleError(
        f"Another process is at work in {path.parent} and does not end. Stop it, or choose another --out.", check="busy"
    )


def _is_same_file(path: Path, descriptor: int) -> bool:
    """Whether what is open is still what is at `path`: who held it may have taken it away."""
    try:
        current = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(current, os.fstat(descriptor))


@dataclass(frozen=True)
class TrainingState:
    """An unfinished training on disk. `finished`: the network is fitted, the bundle is not written yet."""

    path: Path
    data: TrainingRows
    config: dict[str, object]
    finished: bool

    def read_config(self) -> TrainingConfig:
        """The options it was begun with.

        Raises:
            DataError: they are not those of this version.
        """
        options = get_task(self.data.KIND).config_type
        try:
            return options(**{**self.config, "levels": tuple(self.config["levels"])})  # type: ignore[arg-type]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"The interrupted training at {self.path} has other options than this version knows ({error}). "
                "Start anew (--force), or remove it."
            ) from error

    def mark_finished(self) -> None:
        """Note that the network is fitted."""
        _write_state(self.path, self.data, self.config, finished=True)

    def remove(self) -> None:
        """Throw it away; the empty directory goes with its lock."""
        _clear(self.path)


def load(out: Path) -> TrainingState | None:
    """The unfinished training of `out`, or None.

    Raises:
        DataError: there is one, and it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = state_directory(out)
    if not (path / STATE_FILE).exists():
        return None
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        rows = get_task(state.get("kind", MARKET)).rows_type
        data = rows.from_metadata(state["data"], load_file(path / DATA_FILE))
        return TrainingState(path, data, state["config"], bool(state["finished"]))
    except (ValueError, KeyError, TypeError, SafetensorError, OSError) as error:
        raise DataError(
            f"The interrupted training at {path} cannot be read ({error}). Start anew (--force), or remove it."
        ) from error


def open_or_create(out: Path, data: TrainingRows, config: TrainingConfig, *, discard: bool) -> TrainingState:
    """The unfinished training of `out`, which the caller holds, for this data and these options, or a new one.

    Raises:
        BundleError: (check "exists") one for other data or other options is there, or something else, and `anew` is false.
    """
    options = json.loads(json.dumps(asdict(config)))
    try:
        state = load(out)
    except DataError:
        if not discard:
            raise
        state = None
    if state is not None and state.config == options and state.data.data_sha256 == data.data_sha256:
        return state
    path = state_directory(out)
    if state is not None and not discard:
        raise BundleError(
            f"A training with other options or other data was interrupted at {path}. Repeat its command to go on with it, "
            "with --finish to write a bundle from what it has reached, or throw it away (--force).",
            check="exists",
        )
    path.mkdir(parents=True, exist_ok=True)
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in STATE_FILES)
    if state is None and foreign and not discard:
        raise BundleError(
            f"{path}, where the training would keep its checkpoints, holds {foreign[0]}, which is not of a training. "
            "Move it, choose another --out, or have it thrown away (--force).",
            check="exists",
        )
    with lock_rows(out):
        _clear(path)
    _write_data(path, data)
    _write_state(path, data, options, finished=False)
    return TrainingState(path, data, options, finished=False)


def _clear(directory: Path) -> None:
    for entry in directory.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _write_data(path: Path, data: TrainingRows) -> None:
    from safetensors.numpy import save  # its own `save_file` tells of a full disk by an error that is no OSError

    (path / DATA_FILE).write_bytes(save({name: np.ascontiguousarray(getattr(data, name)) for name in data.ARRAYS}))


def _write_state(path: Path, data: TrainingRows, config: dict[str, object], *, finished: bool) -> None:
    state = {"kind": data.KIND, "config": config, "data": data.to_metadata(), "finished": finished}
    staging = path / f"{STATE_FILE}.new"
    staging.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    os.replace(staging, path / STATE_FILE)  # atomic, and says so  # noqa: PTH105  # atomic, and says so
