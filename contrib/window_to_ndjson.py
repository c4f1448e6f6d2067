"""Converts the pickled window of another program to NDJSON for `POST /feed`; nothing in the pickle is executed.

    python contrib/window_to_ndjson.py window.pickle > rows.ndjson

It needs only Python's standard library. Invariant: a pickle is a program. The unpickler knows containers, numbers,
texts and dates, and refuses any other name before anything is called. Limits on memory and CPU time end this process
if the file is a pickle bomb. The whole file is read before the first row is printed. The service validates each row.

Exit codes: 0 printed; 2 wrong usage; 5 the file is refused, or has no row.
"""

from __future__ import annotations

import argparse
import collections
import csv
import datetime
import decimal
import json
import math
import os
import pickle
import re
import resource
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeGuard

MAX_FILE_BYTES = 256 * 2**20
MAX_MEMORY_BYTES = 4 * 2**30  # of address space
MAX_CPU_SECONDS = 600
MAX_DEPTH = 6  # nesting of containers that are searched for rows
MAX_UNKNOWN_NAMES = 1_000  # names that are counted
NEEDS_MEMORY = f"it needs more than {MAX_MEMORY_BYTES >> 30} GB of memory"
NESTED_TOO_DEEPLY = "it is nested too deeply"
REFUSED = 5

TIME_KEYS = ("timestamp", "time", "ts", "datetime", "date", "@timestamp")
SERVER_KEYS = ("server", "server_name", "instance", "host", "hostname", "server_id", "node", "name")
PROFILE_KEYS = ("profile", "role", "server_profile")
STATUS_KEYS = ("status", "state")
FIELD_KEYS = {"time": TIME_KEYS, "server": SERVER_KEYS, "profile": PROFILE_KEYS, "status": STATUS_KEYS}

# The metrics of the feed, and the names that other programs use for them.
ALIASES = {
    "cpu_percent": "cpu cpu_pct cpu_usage cpu_usage_pct cpu_used_pct cpu_util cpu_usage_percent",
    "cpu_iowait_percent": "iowait iowait_pct cpu_iowait cpu_iowait_pct",
    "load_per_core": "",
    "memory_percent": "memory mem mem_pct mem_percent mem_used_pct memory_pct memory_usage memory_used_pct",
    "swap_percent": "swap swap_pct swap_used_pct swap_usage",
    "disk_percent": "disk disk_pct disk_usage disk_usage_pct disk_used_pct",
    "disk_busy_percent": "disk_busy_pct disk_util disk_util_pct",
    "disk_latency_ms": "disk_await_ms disk_wait_ms",
    "network_in_mb_s": "net_in_mb_s network_in_mbs",
    "network_out_mb_s": "net_out_mb_s network_out_mbs",
    "network_errors_per_s": "",
    "latency_ms": "latency response_time_ms",
    "requests_per_s": "rps requests_per_second",
    "error_percent": "error_pct error_rate_pct",
}
METRIC_BY_NAME = {name: metric for metric, names in ALIASES.items() for name in (metric, *names.split())}
IDLE_NAMES = frozenset({"cpu_idle_pct", "cpu_idle_percent"})  # 100 minus this is `cpu_percent`
STATUSES = {
    **{status: status for status in ("ok", "degraded", "down", "maintenance")},
    **dict.fromkeys(("critical", "critical_issue", "warning", "degrading"), "degraded"),
    "offline": "down",
}


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
        """The allowed callable of this name."""
        allowed = ALLOWED_NAMES.get((module, name))
        if allowed is None:
            raise PickleRefused(
                f"it names {ascii(f'{module}.{name}'[:120])[1:-1]}, which is not a container, number, text or date: it could "
                "run anything, so nothing was run"
            )
        return allowed

    def persistent_load(self, pid: Any) -> Any:
        """Refuse a reference to an object outside of the file."""
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
                size, limit = file_status.st_size / 2**20, MAX_FILE_BYTES >> 20
                raise PickleRefused(f"it has {size:.0f} MB; the limit is {limit} MB")
            return PlainUnpickler(stream, encoding="latin1").load()  # latin1: dates of Python 2
    except OSError as error:
        raise PickleRefused(f"it cannot be read: {error.strerror}") from None
    except MemoryError:
        raise PickleRefused(NEEDS_MEMORY) from None
    except RecursionError:
        raise PickleRefused(NESTED_TOO_DEEPLY) from None
    except (
        pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, ImportError, LookupError, TypeError, ValueError,
    ) as error:  # fmt: skip
        # Raised by the unpickler and the constructors of plain types for malformed bytes.
        raise PickleRefused(
            f"it is not a pickle of plain data ({type(error).__name__}: {ascii(str(error)[:120])[1:-1]})"
        ) from None


def find_rows(content: object) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """The rows in the content, each with the name of the container that it is in: from a list of records, a table of
    columns, one of these per server, or any of them nested.
    """
    return _find_rows(content, None, 0, set())


def _find_rows(
    content: object, container: str | None, depth: int, visited: set[int]
) -> Iterator[tuple[str | None, dict[str, Any]]]:
    # Each object is visited once: lists that contain each other many times would be searched forever.
    if depth > MAX_DEPTH or id(content) in visited:
        return
    visited.add(id(content))
    if isinstance(content, dict):
        plain = {str(key)[:128]: value for key, value in dict.items(content)}
        time = next((plain[key] for key in TIME_KEYS if key in plain), None)
        nested = {key: value for key, value in plain.items() if _may_hold_rows(value)}
        if _is_list(time):
            yield from ((container, _table_row(plain, index)) for index in range(len(time)))
        elif time is not None and not set(nested) - {"metrics"}:
            yield container, plain
        else:
            for key, value in nested.items():
                yield from _find_rows(value, key, depth + 1, visited)
    elif _is_list(content):
        for value in iter(content):
            yield from _find_rows(value, container, depth + 1, visited)


def _table_row(table: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A row of a table of columns; a value that is not a column applies to all rows."""
    return {
        key: value[index] if _is_list(value) else value
        for key, value in table.items()
        if not _is_list(value) or index < len(value)
    }


def _may_hold_rows(value: object) -> bool:
    return isinstance(value, dict) or (
        _is_list(value) and any(isinstance(item, dict) or _is_list(item) for item in value)
    )


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple | collections.deque)


def make_record(
    row: Mapping[str, Any], container: str | None, metric_by_name: Mapping[str, str], factors: Mapping[str, float],
    unknown: collections.Counter[str],
) -> dict[str, Any]:  # fmt: skip
    """The record of a feed for a row; numbers under names that are no metric are counted in `unknown`.

    `container`: the server if the row names none. `metric_by_name`: in order of preference. `factors`: by metric, into
    the unit of the feed.
    """
    fields = {
        field: _json_value(next((row[key] for key in keys if row.get(key) is not None), None))
        for field, keys in FIELD_KEYS.items()
    }
    inner = row.get("metrics")
    values = {
        **({str(key)[:128]: value for key, value in dict.items(inner)} if isinstance(inner, dict) else {}),
        **{key: value for key, value in row.items() if not any(key in keys for keys in FIELD_KEYS.values())},
    }
    values = {key: _json_value(value) for key, value in values.items() if key != "metrics"}
    metrics: dict[str, Any] = {}
    for name, metric in metric_by_name.items():
        if values.get(name) is not None:
            metrics.setdefault(metric, values[name])
    for name, value in values.items():
        if name in metric_by_name or not _is_number(value):
            continue
        if name in IDLE_NAMES:
            metrics.setdefault("cpu_percent", 100.0 - value)
        elif name in unknown or len(unknown) < MAX_UNKNOWN_NAMES:
            unknown[name] += 1
    for metric, factor in factors.items():
        if _is_number(metrics.get(metric)):
            metrics[metric] *= factor
    profile = re.sub(r"[^a-z0-9_-]+", "_", str(fields["profile"] or "").lower())
    return {
        "server": fields["server"] or container,
        "time": fields["time"],
        "profile": profile if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", profile) else None,
        "status": STATUSES.get(str(fields["status"] or "").lower()),
        "metrics": metrics,
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json_value(value: Any) -> Any:
    """A value for JSON; NaN means a missing value in such tables."""
    plain = value
    if isinstance(value, decimal.Decimal):
        plain = None if value.is_nan() else float(value)
    elif isinstance(value, float):
        plain = None if math.isnan(value) else value
    elif isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        plain = value.isoformat()
    elif isinstance(value, datetime.timedelta):
        plain = value.total_seconds()
    elif isinstance(value, bytes | bytearray):
        plain = value[:256].decode("latin1")
    elif isinstance(value, str):
        plain = value[:256]
    elif value is not None and not (isinstance(value, int) and value.bit_length() <= 1000):  # a bool is an int
        plain = "a container, or a number with too many digits"
    return plain


def write_records(records: Iterable[dict[str, Any]], output: TextIO, *, as_table: bool) -> int:
    """Write NDJSON, or the table that `fleet train --data` reads; returns the number of records."""
    table = csv.DictWriter(output, ["series", "timestamp", "profile", *ALIASES], extrasaction="ignore")
    if as_table:
        table.writeheader()
    count = 0
    for record in records:
        count += 1
        if as_table:
            columns = {"series": record["server"], "timestamp": record["time"], "profile": record["profile"]}
            table.writerow({**columns, **record["metrics"]})
        else:
            output.write(json.dumps(record) + "\n")
    return count


def parse_metric_name(text: str) -> tuple[str, str]:
    """A value of `--map`."""
    old, _, metric = text.partition("=")
    if not old or metric not in ALIASES:
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=METRIC with one of: {', '.join(ALIASES)}")
    return old, metric


def parse_metric_factor(text: str) -> tuple[str, float]:
    """A value of `--scale`."""
    metric, _, factor = text.partition("=")
    try:
        if metric in ALIASES and math.isfinite(float(factor)):
            return metric, float(factor)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not METRIC=NUMBER with one of: {', '.join(ALIASES)}")


def main(argv: list[str]) -> int:
    """Print the rows of a pickle; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Convert the pickled window of another program to rows for POST /feed. No code in the file is run."
    )
    parser.add_argument("file", type=Path, help="the pickle: lists, dictionaries, numbers, texts and dates")
    parser.add_argument("--map", dest="names", type=parse_metric_name, action="append", default=[], metavar="OLD=METRIC",
                        help="the name of a metric in the file, and its name in the feed; repeatable")  # fmt: skip
    parser.add_argument("--scale", dest="factors", type=parse_metric_factor, action="append", default=[],
                        metavar="METRIC=FACTOR",
                        help="multiply a metric by this, such as cpu_percent=100 for ratios; repeatable")  # fmt: skip
    parser.add_argument("--csv", action="store_true", help="print a table for `fleet train --data` instead of NDJSON")
    options = parser.parse_args(argv)
    for limit, value in (
        (resource.RLIMIT_AS, MAX_MEMORY_BYTES), (resource.RLIMIT_CPU, MAX_CPU_SECONDS), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        resource.setrlimit(limit, (value, value))
    names, unknown = {**dict(options.names), **METRIC_BY_NAME, **dict(options.names)}, collections.Counter[str]()
    try:
        records = (
            make_record(row, container, names, dict(options.factors), unknown)
            for container, row in find_rows(read_pickle(options.file))
        )
        with open(1, "w", encoding="utf-8", errors="backslashreplace", newline="", closefd=False) as output:
            count = write_records(records, output, as_table=options.csv)
    except (PickleRefused, MemoryError, RecursionError) as error:
        reasons = {MemoryError: NEEDS_MEMORY, RecursionError: NESTED_TOO_DEEPLY}
        report(f"Refused {options.file}: {reasons.get(type(error), error)}.")
        return REFUSED
    report(f"{count} {'row' if count == 1 else 'rows'} in {options.file}.")
    if unknown:
        ignored = ", ".join(f"{name} ({count})" for name, count in unknown.most_common(5))
        report(f"Ignored the numbers of unknown metrics: {ignored}. Map them with --map OLD=METRIC.")
    return 0 if count else REFUSED


def report(message: str) -> None:
    """Print a message for the user."""
    sys.stderr.write(f"{message}\n")


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # skips the destructors: those of a long chain of objects would overflow the stack
