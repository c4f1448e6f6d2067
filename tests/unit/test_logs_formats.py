"""A record is one line of the log, or one line and indented ones, whatever is in it."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.logs.formats import MOST_CHARACTERS, Json, Lines, Text
from forecastd.logs.redaction import HIDDEN, Redactor

KEY = "8f3c51d0a9e24b7796c0ffee12ab34cd56ef7890"
REDACTOR = Redactor()
REDACTOR.hide([KEY])
HEAD = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ +\d+ a\.b:run:7 ")
ANYTHING = st.text(st.characters(exclude_categories=()))
HOSTILE = st.lists(
    st.sampled_from(["\n", "\r", "\x1b[2J", "\x85", "\u2028", "\x0c", " ", "{", '"', "2019 ERROR", "\\"])
).map("".join)
Caught = tuple[type[BaseException], BaseException, TracebackType | None]


def record(
    message: str, *arguments: object, error: BaseException | None = None, stack: str | None = None
) -> logging.LogRecord:
    caught: Caught | None = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("a.b", logging.WARNING, "b.py", 7, message, arguments, caught, "run", stack)
    made.created = 1_571_302_800.1239
    return made


def file_text() -> Text:
    return Text(REDACTOR, tracebacks=True, places=True)


def raised(make: Callable[[], Exception]) -> Exception:
    def fail() -> None:
        raise make()

    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is, it is only looked at
        fail()
    assert isinstance(caught.value, Exception)
    return caught.value


@given(message=ANYTHING | HOSTILE, detail=ANYTHING | HOSTILE, stack=st.none() | HOSTILE)
def test_only_the_first_line_of_a_record_is_not_indented(message: str, detail: str, stack: str | None) -> None:
    first, *more = file_text().format(record("%s", message, error=ValueError(detail), stack=stack)).splitlines()
    assert HEAD.match(first)
    assert all(line.startswith("  ") for line in more)


@given(message=ANYTHING | HOSTILE, name=ANYTHING)
def test_the_head_is_of_one_line_too(message: str, name: str) -> None:
    made = record(message.replace("%", ""))
    made.name = made.funcName = name
    for line in file_text().format(made).splitlines()[1:]:
        assert line.startswith("  ")


@given(message=ANYTHING | HOSTILE, detail=ANYTHING | HOSTILE, stack=st.none() | HOSTILE)
def test_a_json_record_is_one_line_that_parses(message: str, detail: str, stack: str | None) -> None:
    line = Json(REDACTOR, tracebacks=True).format(record("%s", message, error=ValueError(detail), stack=stack))
    assert len(line.splitlines()) == 1
    assert line.isascii()
    told = json.loads(line)
    assert list(told) == ["time", "level", "logger", "function", "line", "process", "message", "traceback"]
    assert told["traceback"].startswith("Traceback (most recent call last)") or "ValueError" in told["traceback"]


@given(message=ANYTHING | HOSTILE)
@pytest.mark.parametrize("form", [file_text(), Json(REDACTOR, tracebacks=True), Text(REDACTOR, tracebacks=False)])
def test_nothing_in_a_line_moves_a_cursor(form: Lines, message: str) -> None:
    text = form.format(record("%s", message))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", text)
    text.encode()


def test_what_can_be_read_is_left_as_it_is() -> None:
    text = Text(REDACTOR, tracebacks=False, times=False).format(record("Grüße an %s, 価格\t1 €", "Zoë"))
    assert text == "WARNING: Grüße an Zoë, 価格\t1 €"


def test_the_time_is_utc_with_milliseconds() -> None:
    assert file_text().format(record("x")).startswith("2019-10-17T09:00:00.123Z WARNING ")
    assert Text(REDACTOR, tracebacks=False).format(record("x")) == "2019-10-17T09:00:00.123Z WARNING  x"
    assert json.loads(Json(REDACTOR, tracebacks=False).format(record("x")))["time"] == "2019-10-17T09:00:00.123Z"


def test_json_tells_where_and_what() -> None:
    told: dict[str, Any] = json.loads(Json(REDACTOR, tracebacks=False).format(record("%d of %d", 1, 2)))
    del told["time"], told["process"]
    expected = {"level": "WARNING", "logger": "a.b", "function": "run", "line": 7, "message": "1 of 2"}
    assert told == expected


def caused() -> Exception:
    error = RuntimeError(f"outer {KEY}")
    error.__cause__ = raised(lambda: KeyError(f"cause {KEY}"))
    error.__cause__.__context__ = raised(lambda: OSError(2, "context", f"/x/{KEY}"))
    return error


def grouped() -> Exception:
    return ExceptionGroup("several", [ValueError(KEY), ExceptionGroup("more", [raised(caused)])])


def noted() -> Exception:
    error = ValueError("noted")
    error.add_note(f"the key was {KEY[:20]}\n{KEY[20:]}")
    return error


@pytest.mark.parametrize("make", [caused, grouped, noted, lambda: ValueError("".join(f"{KEY}\n" for _ in range(99)))])
def test_no_exception_however_nested_tells_a_secret(make: Callable[[], Exception]) -> None:
    made = record("failed with %s", KEY, error=raised(make), stack=f"Stack:\n {KEY}")
    for form in (file_text(), Json(REDACTOR, tracebacks=True), Text(REDACTOR, tracebacks=False)):
        text = form.format(made)
        assert KEY[:16] not in text
        assert HIDDEN in text


def test_the_traceback_names_everything_that_led_to_it() -> None:
    text = file_text().format(record("failed", error=raised(caused)))
    for words in ("RuntimeError: outer", "KeyError: 'cause", "FileNotFoundError", "direct cause"):
        assert words in text


def test_without_tracebacks_an_exception_is_told_in_one_line() -> None:
    console = Text(REDACTOR, tracebacks=False, times=False)
    assert (
        console.format(record("No data.", error=raised(lambda: ValueError("a\nb"))))
        == "WARNING: No data. (ValueError: a)"
    )
    assert console.format(record("No data.", error=raised(ValueError))) == "WARNING: No data. (ValueError)"
    assert console.format(record("No data.", stack="Stack:\n x")) == "WARNING: No data."


def test_a_record_that_asks_for_an_exception_where_there_is_none_is_no_error() -> None:
    made = record("x")
    made.exc_info = sys.exc_info()
    assert file_text().format(made).endswith(" x")
    assert Text(REDACTOR, tracebacks=False, times=False).format(made) == "WARNING: x"


def test_a_traceback_that_another_process_formatted_is_kept() -> None:
    made = record("x")
    made.exc_text = "Traceback:\n  y"
    assert file_text().format(made).endswith(" x\n  Traceback:\n    y")


def test_a_huge_record_loses_its_middle_and_no_secret_shows_at_the_cut() -> None:
    at = MOST_CHARACTERS // 2
    text = file_text().format(record("%s", "a" * (at - 20) + KEY + "b" * MOST_CHARACTERS))
    assert len(text) < MOST_CHARACTERS + 200
    assert "characters left out" in text
    assert KEY[:16] not in text
