"""Reads a window that another program has pickled, without running any of it; run as a separate program in a child
process.

Invariant: a pickle is a program, and this is the only module that reads one. Three barriers protect the machine. The
unpickler knows containers, numbers, texts and dates, and refuses any other name before anything is called. It runs in
a process without secrets and with limits on memory and time, so that a pickle bomb ends only that process. And its
result leaves the process as lines of JSON, which are then validated like any feed.

`python -m forecastd.fleet.history.pickle_reader FILE` prints one JSON object per record: server, time, profile,
status, metrics, under the names used in the file. If the file is refused, it exits with 5 and writes the reason to
stderr.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import json
import math
import os
import pickle
import resource
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from forecastd.errors import ExitCode

MAX_FILE_BYTES = 256 * 2**20  # size of a file
MAX_MEMORY_BYTES = 4 * 2**30  # address space of the process that reads the file
CPU_SECONDS = 600
MAX_DEPTH = 6  # nesting of containers that are searched for rows

TIME_KEYS = ("timestamp", "time", "ts", "datetime", "date", "@timestamp")
SERVER_KEYS = ("server", "server_name", "instance", "host", "hostname", "server_id", "node", "name")
PROFILE_KEYS = ("profile", "role", "server_profile")
STATUS_KEYS = ("status", "state")


class PickleRefused(Exception):
    """The file is refused; the message says why, with the full name of the offending object."""


def _make_defaultdict(factory: Any = None, *arguments: Any) -> collections.defaultdict[Any, Any]:
    if factory not in {None, dict, list}:
        raise PickleRefused(f"it contains a defaultdict of {factory!r}; only dict and list are allowed")
    return collections.defaultdict(factory, *arguments)


def _encode_latin1(text: Any, encoding: Any) -> bytes:
    """How protocols 0 to 2 write bytes: a text and `latin1`."""
    if not isinstance(text, str) or encoding != "latin1":
        raise PickleRefused("it contains bytes in an encoding that Python does not write")
    return text.encode("latin1")


_CONTAINER_TYPES = (list, dict, tuple, set, frozenset, bytearray)
_DATE_TYPES = (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone)
ALLOWED_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in _CONTAINER_TYPES},
    **{("datetime", kind.__name__): kind for kind in _DATE_TYPES},
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "deque"): collections.deque,
    ("collections", "defaultdict"): _make_defaultdict,
    ("decimal", "Decimal"): decimal.Decimal,
    ("_codecs", "encode"): _encode_latin1,
}


class PlainUnpickler(pickle.Unpickler):
    """Resolves only the names in `ALLOWED_NAMES`; any other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = ALLOWED_NAMES.get((module, name))
        if allowed is None:
            raise PickleRefused(
                f"it names {ascii(f'{module}.{name}'[:120])[1:-1]}, which is not a container, number, text or date: it could "
                "run anything, so nothing was run"
            )
        return allowed

    def persistent_load(self, pid: Any) -> Any:
        raise PickleRefused("it refers to an object outside of the file")


def read_pickle(path: Path) -> Any:
    """The content of the pickle at `path`: plain containers, numbers, texts and dates.

    Raises:
        PickleRefused: it contains something else, is not a pickle, or is too large.
    """
    try:
        with path.open("rb") as stream:
            file_status = os.fstat(stream.fileno())
            if not stat.S_ISREG(file_status.st_mode):
                raise PickleRefused("it is not a regular file")
            if file_status.st_size > MAX_FILE_BYTES:
                raise PickleRefused(
                    f"it has {file_status.st_size / 2**20:.0f} MB; the limit is {MAX_FILE_BYTES >> 20} MB"
                )
            return PlainUnpickler(stream, encoding="latin1").load()  # latin1: dates of Python 2
    except OSError as error:
        raise PickleRefused(f"it cannot be read: {error.strerror}") from None
    except MemoryError:
        raise PickleRefused(f"it needs more than {MAX_MEMORY_BYTES >> 30} GB of memory") from None
    except RecursionError:
        raise PickleRefused("it is nested too deeply") from None
    except (
        pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, ImportError, LookupError, TypeError, ValueError,
    ) as error:  # fmt: skip
        # Raised by the unpickler and the constructors of plain types for malformed bytes.
        raise PickleRefused(
            f"it is not a pickle of plain data ({type(error).__name__}: {ascii(str(error)[:120])[1:-1]})"
        ) from None


def find_records(content: object) -> Iterator[dict[str, Any]]:
    """The rows in the content: from a list of records, a table of columns, one of these per server, or any of them
    nested.
    """
    return _find_records(content, None, 0, set())


def _find_records(content: object, server: str | None, depth: int, visited: set[int]) -> Iterator[dict[str, Any]]:
    # Each object is visited once: lists that contain each other many times would be searched forever.
    if depth > MAX_DEPTH or id(content) in visited:
        return
    visited.add(id(content))
    if isinstance(content, dict):
        plain = {str(key)[:128]: value for key, value in dict.items(content)}
        time = next((plain[key] for key in TIME_KEYS if key in plain), None)
        nested = {key: value for key, value in plain.items() if _may_hold_rows(value)}
        if _is_list(time):
            yield from _table_rows(plain, server)
        elif time is not None and not set(nested) - {"metrics"}:
            yield _record(plain, server)
        else:
            for key, value in nested.items():
                yield from _find_records(value, key, depth + 1, visited)
    elif _is_list(content):
        for value in iter(content):
            yield from _find_records(value, server, depth + 1, visited)


def _may_hold_rows(value: object) -> bool:
    return isinstance(value, dict) or (
        _is_list(value) and any(isinstance(item, dict) or _is_list(item) for item in value)
    )


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple | collections.deque)


def _table_rows(table: dict[str, Any], server: str | None) -> Iterator[dict[str, Any]]:
    """The rows of a table of columns; a value that is not a column applies to all rows."""
    time = next(key for key in TIME_KEYS if key in table)
    for index in range(len(table[time])):
        row = {}
        for key, value in table.items():
            if not _is_list(value):
                row[key] = value
            elif index < len(value):
                row[key] = value[index]
        yield _record(row, server)


def _record(row: dict[str, Any], server: str | None) -> dict[str, Any]:
    """A row in the shape of a feed record, with the original metric names."""
    fields: dict[str, Any] = {}
    for field, keys in (
        ("time", TIME_KEYS),
        ("server", SERVER_KEYS),
        ("profile", PROFILE_KEYS),
        ("status", STATUS_KEYS),
    ):
        key = next((key for key in keys if row.get(key) is not None), None)
        if key is not None:
            fields[field] = _json_value(row[key])
    if "server" not in fields and server is not None:
        fields["server"] = server
    reserved = {*TIME_KEYS, *SERVER_KEYS, *PROFILE_KEYS, *STATUS_KEYS, "metrics"}
    inner = row.get("metrics")
    values = {key: value for key, value in row.items() if key not in reserved}
    if isinstance(inner, dict):
        values = {**{str(key)[:128]: value for key, value in dict.items(inner)}, **values}
    return {**fields, "metrics": {key: _json_value(value) for key, value in values.items()}}


def _json_value(value: Any) -> Any:
    """A value for JSON; NaN means a missing value in such tables."""
    if isinstance(value, float | decimal.Decimal):
        number = float(value)
        plain: Any = None if math.isnan(number) else number
    elif isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        plain = value.isoformat()
    elif isinstance(value, datetime.timedelta):
        plain = value.total_seconds()
    elif isinstance(value, bytes | bytearray):
        plain = value[:256].decode("latin1")
    elif isinstance(value, str):
        plain = value[:256]
    elif value is None or (isinstance(value, int) and value.bit_length() <= 1024):  # a bool is an int
        plain = value
    else:
        plain = "a container, or a number with too many digits"
    return plain


def main(argv: list[str]) -> int:
    """Print the records of the file; returns the exit code."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        for record in find_records(read_pickle(Path(argv[1]))):
            sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()
    except (PickleRefused, MemoryError) as error:
        sys.stderr.write(f"{error}" or f"it needs more than {MAX_MEMORY_BYTES >> 30} GB of memory")
        return ExitCode.NEEDS_HUMAN
    return ExitCode.SUCCESS


if __name__ == "__main__":
    code = main(sys.argv)
    sys.stderr.flush()
    os._exit(code)  # skips the destructors: those of a long chain of objects would overflow the stack
