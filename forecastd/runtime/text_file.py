"""Small text files that a person writes: settings, feature lists, topics.

The one thing to know before changing it: what is opened may be anything, so a named pipe must not be waited for and a
device not be read for ever.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from forecastd.errors import NeedsHuman

MAX_BYTES = 2**20


def read_text_file(path: Path, description: str, fix: str) -> str:
    """The text of a file in UTF-8. `what` names the file's purpose and `fix` what to look at, as a sentence.

    Raises:
        NeedsHuman: it cannot be opened, is no regular file, is larger than `MOST_BYTES`, or is not UTF-8.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise NeedsHuman(f"{description} {path} is no regular file. {fix}")
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
        raise NeedsHuman(f"{description} {path} is not text in UTF-8. {fix}") from None
