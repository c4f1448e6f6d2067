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

from models.config import TrainingConfig
from models.errors import BundleError, DataError
from models.kinds import MARKET, Rows, kind_of

STATE, DATA = "state.json", "data.safetensors"
BEST, LAST = "best.ckpt", "last.ckpt"
OURS = (STATE, f"{STATE}.new", DATA, BEST, LAST, f"{BEST}.new", f"{LAST}.new")
_LOOKS, _PAUSE = 600, 0.05  # how often to look, and the seconds between, whether a process that is being ended is gone


def place(out: Path) -> Path:
    """Where the unfinished training of the bundle `out` is kept."""
    return out.with_name(f"{out.name}.training")


@contextmanager
def hold(out: Path) -> Iterator[None]:
    """Keep every other training, of this process or another, away from the unfinished training of `out`.

    Makes its directory and those above it where they lack, and takes those away again that stay empty.

    Raises:
        BundleError: (check "busy") another training holds it.
        OSError: the directory cannot be made.
    """
    path = place(out)
    made = [directory for directory in (path, *path.parents) if not directory.exists()]
    descriptor = _locked(path)
    try:
        yield
    finally:
        with suppress(OSError):  # not empty, or gone already
            path.rmdir()
        os.close(descriptor)
        with suppress(OSError):
            for directory in made[1:]:
                directory.rmdir()


def _locked(path: Path) -> int:
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
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)


@contextmanager
def alone(out: Path) -> Iterator[bool]:
    """Be the only process that goes on with the unfinished training of `out`; waits for one that is being ended.

    Gives whether there is an unfinished training at all.

    Raises:
        BundleError: (check "busy") another process is at it and does not end.
        OSError: the rows cannot be opened.
    """
    descriptor = _rows_locked(place(out) / DATA)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _rows_locked(path: Path) -> int | None:
    """A descriptor of the rows that holds their lock until it is closed; None where there are none."""
    pause = Event()
    for _ in range(_LOOKS):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                return descriptor
        os.close(descriptor)
        pause.wait(_PAUSE)
    raise BundleError(
        f"Another process is at work in {path.parent} and does not end. Stop it, or choose another --out.", check="busy"
    )


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether what is open is still what is at `path`: who held it may have taken it away."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


@dataclass(frozen=True)
class Work:
    """An unfinished training on disk. `finished`: the network is fitted, the bundle is not written yet."""

    path: Path
    data: Rows
    config: dict[str, object]
    finished: bool

    def options(self) -> TrainingConfig:
        """The options it was begun with.

        Raises:
            DataError: they are not those of this version.
        """
        options = kind_of(self.data.KIND).config
        try:
            return options(**{**self.config, "levels": tuple(self.config["levels"])})  # type: ignore[arg-type]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"The interrupted training at {self.path} has other options than this version knows ({error}). "
                "Start anew (--force), or remove it."
            ) from error

    def finish(self) -> None:
        """Note that the network is fitted."""
        _write_state(self.path, self.data, self.config, finished=True)

    def remove(self) -> None:
        """Throw it away; the empty directory goes with its lock."""
        _empty(self.path)


def find(out: Path) -> Work | None:
    """The unfinished training of `out`, or None.

    Raises:
        DataError: there is one, and it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = place(out)
    if not (path / STATE).exists():
        return None
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        rows = kind_of(state.get("kind", MARKET)).rows
        data = rows.restored(state["data"], load_file(path / DATA))
        return Work(path, data, state["config"], bool(state["finished"]))
    except (ValueError, KeyError, TypeError, SafetensorError, OSError) as error:
        raise DataError(
            f"The interrupted training at {path} cannot be read ({error}). Start anew (--force), or remove it."
        ) from error


def begin(out: Path, data: Rows, config: TrainingConfig, *, anew: bool) -> Work:
    """The unfinished training of `out`, which the caller holds, for this data and these options, or a new one.

    Raises:
        BundleError: (check "exists") one for other data or other options is there, or something else, and `anew` is false.
    """
    options = json.loads(json.dumps(asdict(config)))
    try:
        found = find(out)
    except DataError:
        if not anew:
            raise
        found = None
    if found is not None and found.config == options and found.data.data_sha256 == data.data_sha256:
        return found
    path = place(out)
    if found is not None and not anew:
        raise BundleError(
            f"A training with other options or other data was interrupted at {path}. Repeat its command to go on with it, "
            "with --finish to write a bundle from what it has reached, or throw it away (--force).",
            check="exists",
        )
    path.mkdir(parents=True, exist_ok=True)
    strange = sorted(entry.name for entry in path.iterdir() if entry.name not in OURS)
    if found is None and strange and not anew:
        raise BundleError(
            f"{path}, where the training would keep its checkpoints, holds {strange[0]}, which is not of a training. "
            "Move it, choose another --out, or have it thrown away (--force).",
            check="exists",
        )
    with alone(out):
        _empty(path)
    _write_data(path, data)
    _write_state(path, data, options, finished=False)
    return Work(path, data, options, finished=False)


def _empty(directory: Path) -> None:
    for entry in directory.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _write_data(path: Path, data: Rows) -> None:
    from safetensors.numpy import save  # its own `save_file` tells of a full disk by an error that is no OSError

    (path / DATA).write_bytes(save({name: np.ascontiguousarray(getattr(data, name)) for name in data.ARRAYS}))


def _write_state(path: Path, data: Rows, config: dict[str, object], *, finished: bool) -> None:
    state = {"kind": data.KIND, "config": config, "data": data.described(), "finished": finished}
    staging = path / f"{STATE}.new"
    staging.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    os.replace(staging, path / STATE)  # noqa: PTH105  # atomic, and says so
