"""Work that takes long, in a thread of its own: whoever started it looks now and then what became of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from forecastd.errors import ForecastdError
from forecastd.runtime.unexpected import UnexpectedError, run_guarded

T = TypeVar("T")


class BackgroundTask(Generic[T]):
    """Begins at once. An error of `errors.py` is a result like any other, one that nobody foresaw is an `Unforeseen`."""

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        self._name, self._work = name, work
        self._result: list[T | ForecastdError | UnexpectedError] = []
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return bool(self._result)

    @property
    def result(self) -> T | ForecastdError | UnexpectedError:
        """What came of it. IndexError while it goes on."""
        return self._result[0]

    def _run(self) -> None:
        self._result.append(run_guarded(self._name, self._call_work))

    def _call_work(self) -> T | ForecastdError:
        try:
            return self._work()
        except ForecastdError as error:
            return error
