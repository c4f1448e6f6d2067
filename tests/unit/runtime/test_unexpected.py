"""The outermost exception handler."""

from __future__ import annotations

import pytest

from forecastd.runtime.unexpected import UnexpectedError, run_guarded


def test_unexpected_error_logs_one_line_and_the_traceback_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    result = run_guarded("the work", lambda: 1 // 0)
    assert isinstance(result, UnexpectedError)
    assert result.reason.startswith("ZeroDivisionError")
    line, trace = caplog.records
    assert (line.levelname, line.exc_info) == ("ERROR", None)
    assert trace.levelname == "DEBUG"
    assert trace.exc_info is not None


def test_system_exit_is_not_caught() -> None:
    def exit_process() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        run_guarded("the work", exit_process)
