"""A long task in its own thread; the caller polls for its result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from forecastd.errors import ForecastdError
from forecastd.runtime.unexpected import UnexpectedError, run_guarded

T = TypeVar("T")


class BackgroundTask(Generic[T]):
    """Starts at once. The result may be an error of `errors.py`, or an `UnexpectedError` for any other exception."""

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        self._name, self._work = name, work
        self._result: list[T | ForecastdError | UnexpectedError] = []
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def done(self) -> bool:
        """Whether the task has finished."""
        return bool(self._result)

    @property
    def result(self) -> T | ForecastdError | UnexpectedError:
        """The return value or the error. Raises IndexError while the task is running."""
        return self._result[0]

    def _run(self) -> None:
        self._result.append(run_guarded(self._name, self._call_work))

    def _call_work(self) -> T | ForecastdError:
        try:
            return self._work()
        except ForecastdError as error:
            return error
