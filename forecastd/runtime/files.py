"""Reading small text files that a person writes, and writing files atomically.

Invariant: a reader sees the old file or the new one, never a part, and a failure leaves nothing behind. A path from a user
may be anything, so reading must neither wait for a named pipe nor read a device for ever.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from forecastd.errors import NeedsHuman

MAX_BYTES = 2**20  # of a text file
STATE_DIR_FIX = "Set STATE_DIR to a writable directory."


def write_atomic(
    path: Path, content: bytes, *, mode: int = 0o600, overwrite: bool = True, fix: str = "Choose another path."
) -> None:
    """Replace or create the file at `path`, and its directories, with `content`.

    Without `overwrite` a file that exists stays as it is, and a new one is on the disk before anything can rely on it.
    `fix`: a sentence of the error's message.

    Raises:
        NeedsHuman: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                if not overwrite:
                    stream.flush()
                    os.fsync(descriptor)
            Path(temporary).chmod(mode)
            if overwrite:
                Path(temporary).replace(path)
            else:
                with suppress(FileExistsError):
                    path.hardlink_to(temporary)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise NeedsHuman(f"Cannot write {path}: {error.strerror}. {fix}") from None


def read_text_file(path: Path, description: str, fix: str) -> str:
    """The text of a UTF-8 file. `description` names the file in messages, such as "The file"; `fix` is a sentence.

    Raises:
        NeedsHuman: it cannot be opened, is not a regular file, is larger than `MAX_BYTES`, or is not UTF-8.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise NeedsHuman(f"{description} {path} is not a regular file. {fix}")
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise NeedsHuman(
            f"Cannot read {description[0].lower()}{description[1:]} {path}: {error.strerror}. {fix}"
        ) from error
    if len(data) > MAX_BYTES:
        raise NeedsHuman(f"{description} {path} is larger than {MAX_BYTES >> 20} MB. {fix}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise NeedsHuman(f"{description} {path} is not UTF-8 text. {fix}") from None
