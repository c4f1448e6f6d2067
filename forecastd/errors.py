"""Error classes by what the caller does next, and the exit codes. The docstring of an error class is its default message.

Invariant: a message names the cause and the fix, and never a secret. `exit_code` is the exit code of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from importlib.util import find_spec

EXTRAS: Mapping[str, tuple[str, ...]] = {  # the modules that an extra of the package installs
    "exchange": ("ccxt",),
    "files": ("pyarrow",),
    "fleet": ("fastapi", "fastapi_offline", "limits", "uvicorn"),
    "onnx": ("onnx", "onnxruntime"),
    "train": ("torch", "lightning", "pytorch_forecasting", "statsforecast"),
}


class ExitCode(IntEnum):
    """The exit codes of the command line, as documented in docs/exit-codes.md."""

    SUCCESS = 0
    UNEXPECTED = 1  # an unexpected error
    USAGE = 2  # wrong usage
    NOTHING_TO_DO = 3  # no window is open, or no daemon or fleet is running
    REFUSED = 4  # the data or a result was refused
    NEEDS_HUMAN = 5  # a person must act
    TEMPORARY = 6  # a temporary failure
    INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


class ForecastdError(Exception):
    """Something went wrong."""

    exit_code: ExitCode = ExitCode.UNEXPECTED

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").splitlines()[0])


class RetryLater(ForecastdError):
    """A temporary error: the same call may succeed later."""

    exit_code = ExitCode.TEMPORARY


class SkipEpoch(ForecastdError):
    """No valid forecast can be made for this epoch.

    `check` is the stable name of the check that refused, as documented in docs/operating.md.
    """

    exit_code = ExitCode.REFUSED

    def __init__(self, message: str | None = None, *, check: str = "unnamed") -> None:
        super().__init__(message)
        self.check = check


class NeedsHuman(ForecastdError):
    """A person must change something (configuration, model, wallet) before this can work."""

    exit_code = ExitCode.NEEDS_HUMAN


def has_extra(extra: str) -> bool:
    """Whether all modules of an extra are installed. Imports none of them."""
    return all(find_spec(module) is not None for module in EXTRAS[extra])


def require_extra(extra: str, purpose: str) -> None:
    """Check that the modules of an extra are installed; `purpose` is what needs them, as the start of the message.

    Raises:
        NeedsHuman: a module is missing. The message says what to install.
    """
    missing = [module for module in EXTRAS[extra] if find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise NeedsHuman(
            f"{purpose} needs {', '.join(missing)}, which {verb} not installed. "
            f"Run: pip install 'forecastd[{extra}]' (in a checkout: pip install '.[{extra}]')."
        )
