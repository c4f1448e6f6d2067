"""Writes a file whole or not at all: a reader sees the old one or the new one, and a failure leaves nothing behind."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from forecastd.errors import NeedsHuman


def write_atomic(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Put `content` into the file at `path`, made with its directories or replaced.

    Raises:
        NeedsHuman: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
            Path(temporary).chmod(mode)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise NeedsHuman(f"{path} cannot be written: {error.strerror}. Choose another place.") from None
