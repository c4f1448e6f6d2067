"""Error classes by what the caller does next. The docstring of a class is its default message.

Invariant: a message names the cause and the fix, and never a secret. `exit_code` is the exit code of the command line.
"""

from __future__ import annotations


class ForecastdError(Exception):
    """Something went wrong."""

    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").splitlines()[0])


class RetryLater(ForecastdError):
    """A temporary error: the same call may succeed later."""

    exit_code = 6


class SkipEpoch(ForecastdError):
    """No valid forecast can be made for this epoch.

    `check` is the stable name of the check that refused, as documented in docs/operating.md.
    """

    exit_code = 4

    def __init__(self, message: str | None = None, *, check: str = "unnamed") -> None:
        super().__init__(message)
        self.check = check


class NeedsHuman(ForecastdError):
    """A person must change something (configuration, model, wallet) before this can work."""

    exit_code = 5
