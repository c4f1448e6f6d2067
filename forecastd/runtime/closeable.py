"""What every object with open files, connections, threads or processes has in common: a `with` statement ends it."""

from __future__ import annotations

from typing import Self


class Closeable:
    """An object that a `with` statement starts at its beginning and closes at its end."""

    def start(self) -> None:
        """Begin to work. Objects that work from their construction on do nothing here."""

    def close(self) -> None:
        """End the work and release everything."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
