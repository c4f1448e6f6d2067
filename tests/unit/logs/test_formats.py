"""A record starts exactly one line of the log; any other line of it is indented."""

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

from forecastd.logs.formats import MAX_CHARACTERS, LineFormatter
from forecastd.logs.redaction import HIDDEN, Redactor

KEY = "8f3c51d0a9e24b7796c0ffee12ab34cd56ef7890"
REDACTOR = Redactor()
REDACTOR.hide([KEY])
TEXT = LineFormatter(REDACTOR, tracebacks=False)
TIMED_TEXT = LineFormatter(REDACTOR, tracebacks=False, timestamps=True)
FILE_TEXT = LineFormatter(REDACTOR, tracebacks=True, timestamps=True, locations=True)
JSON = LineFormatter(REDACTOR, tracebacks=False, json=True)
FILE_JSON = LineFormatter(REDACTOR, tracebacks=True, json=True)
HEAD = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ +\d+ a\.b:run:7 ")
ANYTHING = st.text(st.characters(exclude_categories=()))
UNSAFE_TEXTS = st.lists(
    st.sampled_from(["\n", "\r", "\x1b[2J", "\x85", "\u2028", "\x0c", " ", "{", '"', "2019 ERROR", "\\"])
).map("".join)
ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def make_record(
    message: str, *arguments: object, error: BaseException | None = None, stack: str | None = None
) -> logging.LogRecord:
    error_info: ExceptionInfo | None = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("a.b", logging.WARNING, "b.py", 7, message, arguments, error_info, "run", stack)
    record.created = 1_571_302_800.1239
    return record


def raise_and_catch(make: Callable[[], Exception]) -> Exception:
    def fail() -> None:
        raise make()

    with pytest.raises(Exception) as caught:  # noqa: PT011 - any exception is fine here
        fail()
    assert isinstance(caught.value, Exception)
    return caught.value


@given(message=ANYTHING | UNSAFE_TEXTS, detail=ANYTHING | UNSAFE_TEXTS, stack=st.none() | UNSAFE_TEXTS)
def test_continuation_lines_are_indented(message: str, detail: str, stack: str | None) -> None:
    first, *more = FILE_TEXT.format(make_record("%s", message, error=ValueError(detail), stack=stack)).splitlines()
    assert HEAD.match(first)
    assert all(line.startswith("  ") for line in more)


@given(message=ANYTHING | UNSAFE_TEXTS, name=ANYTHING)
def test_head_is_one_line(message: str, name: str) -> None:
    record = make_record(message.replace("%", ""))
    record.name = record.funcName = name
    for line in FILE_TEXT.format(record).splitlines()[1:]:
        assert line.startswith("  ")


@given(message=ANYTHING | UNSAFE_TEXTS, detail=ANYTHING | UNSAFE_TEXTS, stack=st.none() | UNSAFE_TEXTS)
def test_json_record_is_one_line_that_parses(message: str, detail: str, stack: str | None) -> None:
    line = FILE_JSON.format(make_record("%s", message, error=ValueError(detail), stack=stack))
    assert len(line.splitlines()) == 1
    assert line.isascii()
    fields = json.loads(line)
    assert list(fields) == ["time", "level", "logger", "function", "line", "process", "message", "traceback"]
    assert fields["traceback"].startswith("Traceback (most recent call last)") or "ValueError" in fields["traceback"]


@given(message=ANYTHING | UNSAFE_TEXTS)
@pytest.mark.parametrize(
    "formatter",
    [
        FILE_TEXT,
        FILE_JSON,
        TIMED_TEXT,
    ],
)
def test_control_characters_are_escaped(formatter: LineFormatter, message: str) -> None:
    text = formatter.format(make_record("%s", message))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", text)
    text.encode()


def test_printable_text_is_unchanged() -> None:
    text = TEXT.format(make_record("Grüße an %s, 価格\t1 €", "Zoë"))
    assert text == "WARNING: Grüße an Zoë, 価格\t1 €"


def test_timestamp_is_utc_with_milliseconds() -> None:
    assert FILE_TEXT.format(make_record("x")).startswith("2019-10-17T09:00:00.123Z WARNING ")
    assert TIMED_TEXT.format(make_record("x")) == "2019-10-17T09:00:00.123Z WARNING  x"
    assert json.loads(JSON.format(make_record("x")))["time"] == "2019-10-17T09:00:00.123Z"


def test_json_record_has_every_field() -> None:
    fields: dict[str, Any] = json.loads(JSON.format(make_record("%d of %d", 1, 2)))
    del fields["time"], fields["process"]
    expected = {"level": "WARNING", "logger": "a.b", "function": "run", "line": 7, "message": "1 of 2"}
    assert fields == expected


def caused() -> Exception:
    error = RuntimeError(f"outer {KEY}")
    error.__cause__ = raise_and_catch(lambda: KeyError(f"cause {KEY}"))
    error.__cause__.__context__ = raise_and_catch(lambda: OSError(2, "context", f"/x/{KEY}"))
    return error


def grouped() -> Exception:
    return ExceptionGroup("several", [ValueError(KEY), ExceptionGroup("more", [raise_and_catch(caused)])])


def with_note() -> Exception:
    error = ValueError("noted")
    error.add_note(f"the key was {KEY[:20]}\n{KEY[20:]}")
    return error


@pytest.mark.parametrize(
    "make", [caused, grouped, with_note, lambda: ValueError("".join(f"{KEY}\n" for _ in range(99)))]
)
def test_nested_exceptions_are_redacted(make: Callable[[], Exception]) -> None:
    record = make_record("failed with %s", KEY, error=raise_and_catch(make), stack=f"Stack:\n {KEY}")
    for formatter in (
        FILE_TEXT,
        FILE_JSON,
        TIMED_TEXT,
    ):
        text = formatter.format(record)
        assert KEY[:16] not in text
        assert HIDDEN in text


def test_traceback_names_every_cause() -> None:
    text = FILE_TEXT.format(make_record("failed", error=raise_and_catch(caused)))
    for words in ("RuntimeError: outer", "KeyError: 'cause", "FileNotFoundError", "direct cause"):
        assert words in text


def test_exception_without_traceback_is_one_line() -> None:
    assert (
        TEXT.format(make_record("No data.", error=raise_and_catch(lambda: ValueError("a\nb"))))
        == "WARNING: No data. (ValueError: a)"
    )
    assert TEXT.format(make_record("No data.", error=raise_and_catch(ValueError))) == "WARNING: No data. (ValueError)"
    assert TEXT.format(make_record("No data.", stack="Stack:\n x")) == "WARNING: No data."


def test_exc_info_without_exception_is_accepted() -> None:
    record = make_record("x")
    record.exc_info = sys.exc_info()
    assert FILE_TEXT.format(record).endswith(" x")
    assert TEXT.format(record) == "WARNING: x"


def test_preformatted_traceback_is_kept() -> None:
    record = make_record("x")
    record.exc_text = "Traceback:\n  y"
    assert FILE_TEXT.format(record).endswith(" x\n  Traceback:\n    y")


def test_huge_record_is_shortened_and_stays_redacted() -> None:
    position = MAX_CHARACTERS // 2
    text = FILE_TEXT.format(make_record("%s", "a" * (position - 20) + KEY + "b" * MAX_CHARACTERS))
    assert len(text) < MAX_CHARACTERS + 200
    assert "characters left out" in text
    assert KEY[:16] not in text
