"""A /metrics page in Prometheus' text format as the contract's metrics: node_exporter's, an HTTP service's, or our own names.

The one thing to know before changing it: what a page counts is known as a rate only from two pages. A counter that fell back
was reset, and says nothing until the page after. Names are those of node_exporter 1.x (its collectors cpu, meminfo,
diskstats, filesystem, loadavg, netdev) and of the usual HTTP instrumentations (http_requests_total,
http_request_duration_seconds).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from forecastd.fleet.contract import INDEX, NAMES

PREFIX = "forecastd_"
Labels = Mapping[str, str]
Series = tuple[str, frozenset[tuple[str, str]]]

_NO_DISK = re.compile(r"(loop|ram|zram|sr|fd|nbd)\d+")
_MADE_OF_DISKS = re.compile(r"(dm-|md)\d+")  # their requests are counted once more in the disks below them
_NO_NETWORK = re.compile(r"(lo|veth.*|docker.*|br-.*|virbr.*|cni.*|cali.*|flannel.*|bond\d+|team\d+|dummy.*|ifb.*)")
_NO_FILES = frozenset({
    "tmpfs", "devtmpfs", "ramfs", "overlay", "squashfs", "iso9660", "udf", "autofs", "proc", "sysfs", "cgroup", "cgroup2",
    "nsfs", "tracefs", "debugfs", "efivarfs", "erofs", "fuse.lxcfs", "rpc_pipefs",
})  # fmt: skip
_HTTP = ("http_requests_total", "http_request_duration_seconds_sum", "http_request_duration_seconds_count")
_NODE = ("node_cpu_seconds_total", "node_load1", "node_memory_", "node_filesystem_", "node_disk_", "node_network_")
_WANTED = (*_HTTP, *_NODE, PREFIX, *NAMES)


class PageError(ValueError):
    """The page cannot be used; the message says why."""


@dataclass(frozen=True)
class Page:
    """What a page says: its samples by name and labels, without those that are NaN."""

    samples: Mapping[str, Mapping[frozenset[tuple[str, str]], float]]

    def of(self, name: str) -> Iterator[tuple[Labels, float]]:
        """The samples of this name."""
        for labels, value in self.samples.get(name, {}).items():
            yield dict(labels), value

    def one(self, name: str) -> float | None:
        """The greatest sample of this name: of every metric more is worse."""
        return max(self.samples.get(name, {}).values(), default=None)


def read_page(text: str) -> Page:
    """The samples of a page that may matter.

    Raises:
        PageError: a line of them is no sample, or there is none.
    """
    from prometheus_client.parser import text_string_to_metric_families

    lines = "\n".join(line for line in text.splitlines() if line.startswith(_WANTED))
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    try:
        for family in text_string_to_metric_families(lines + "\n"):
            for sample in family.samples:
                if not math.isnan(sample.value):
                    found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = float(sample.value)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise PageError(f"it is no page of metrics in Prometheus' text format: {error}") from None
    if not found:
        raise PageError("it has neither node_exporter's metrics nor the contract's; docs/fleet.md lists the names")
    return Page(found)


def measured(page: Page, before: Page | None, elapsed: float) -> dict[str, float]:
    """The contract's metrics in its units, as far as the page has them. `before` is the page `elapsed` seconds ago."""
    found: dict[str, float | None] = {
        "load_per_core": _load(page),
        "memory_percent": _memory(page),
        "swap_percent": _swap(page),
        "disk_percent": _full(page),
    }
    if before is not None and elapsed > 0:
        grown = _Grown(page, before)
        found |= _cpu(grown) | _disk(grown, elapsed) | _network(grown, elapsed) | _http(grown, elapsed)
    plain = {
        name: page.one(f"{PREFIX}{name}") if f"{PREFIX}{name}" in page.samples else page.one(name) for name in INDEX
    }
    found |= {name: value for name, value in plain.items() if value is not None}
    return {name: value for name, value in found.items() if value is not None}


class _Grown:
    """By how much the counters of a page have grown since the one before."""

    def __init__(self, page: Page, before: Page) -> None:
        self._page, self._before = page, before

    def of(self, name: str) -> list[tuple[Labels, float]] | None:
        """Labels and growth of each series that both pages have; None where there is none, or one was reset."""
        now, before = self._page.samples.get(name, {}), self._before.samples.get(name, {})
        found: list[tuple[Labels, float]] = [
            (dict(labels), value - before[labels]) for labels, value in now.items() if labels in before
        ]
        return found if found and all(grown >= 0 for _, grown in found) else None

    def total(self, name: str, takes: Callable[[Labels], bool]) -> float | None:
        """The growth of all series that `takes` takes."""
        found = self.of(name)
        chosen = [grown for labels, grown in found or () if takes(labels)]
        return sum(chosen) if chosen else None


def _cpu(grown: _Grown) -> dict[str, float | None]:
    found = grown.of("node_cpu_seconds_total") or []
    whole = sum(seconds for _, seconds in found)
    if whole <= 0:
        return {}
    waits, idle = (sum(s for labels, s in found if labels.get("mode") == mode) for mode in ("iowait", "idle"))
    return {"cpu_percent": _percent((whole - waits - idle) / whole), "cpu_iowait_percent": _percent(waits / whole)}


def _load(page: Page) -> float | None:
    load, cores = page.one("node_load1"), len({labels.get("cpu") for labels, _ in page.of("node_cpu_seconds_total")})
    return load / cores if load is not None and cores else None


def _memory(page: Page) -> float | None:
    whole = page.one("node_memory_MemTotal_bytes")
    free = page.one("node_memory_MemAvailable_bytes")
    if free is None:  # kernels before 3.14
        parts = [page.one(f"node_memory_{name}_bytes") for name in ("MemFree", "Buffers", "Cached")]
        free = sum(part for part in parts if part is not None) if parts[0] is not None else None
    return _percent(1 - free / whole) if whole and free is not None else None


def _swap(page: Page) -> float | None:
    whole, free = page.one("node_memory_SwapTotal_bytes"), page.one("node_memory_SwapFree_bytes")
    if whole is None or free is None:
        return None
    return _percent(1 - free / whole) if whole else 0.0


def _full(page: Page) -> float | None:
    """The fullest file system, as `df` reckons: what is used of what may be used."""
    sizes, frees = (
        page.samples.get("node_filesystem_size_bytes", {}),
        page.samples.get("node_filesystem_free_bytes", {}),
    )
    read_only = {labels for labels, value in page.samples.get("node_filesystem_readonly", {}).items() if value == 1}
    found = []
    for labels, left in page.samples.get("node_filesystem_avail_bytes", {}).items():
        size = sizes.get(labels, 0.0)
        if dict(labels).get("fstype") in _NO_FILES or labels in read_only or size <= 0:
            continue
        used = size - frees.get(labels, left)
        found.append(_percent(used / (used + left)) if used + left > 0 else 0.0)
    return max(found, default=None)


def _disk(grown: _Grown, elapsed: float) -> dict[str, float | None]:
    def is_disk(labels: Labels) -> bool:
        return not _NO_DISK.fullmatch(labels.get("device", ""))

    def at_the_bottom(labels: Labels) -> bool:
        return is_disk(labels) and not _MADE_OF_DISKS.fullmatch(labels.get("device", ""))

    busy = [seconds for labels, seconds in grown.of("node_disk_io_time_seconds_total") or () if is_disk(labels)]
    kinds = ("read", "write")
    spent = [grown.total(f"node_disk_{kind}_time_seconds_total", at_the_bottom) for kind in kinds]
    done = [grown.total(f"node_disk_{kind}s_completed_total", at_the_bottom) for kind in kinds]
    known = [*spent, *done]
    requests = sum(part for part in done if part is not None)
    seconds = sum(part for part in spent if part is not None)
    return {
        "disk_busy_percent": _percent(max(busy) / elapsed) if busy else None,
        "disk_latency_ms": None if None in known else 1e3 * seconds / requests if requests else 0.0,
    }


def _network(grown: _Grown, elapsed: float) -> dict[str, float | None]:
    def is_outside(labels: Labels) -> bool:
        return not _NO_NETWORK.fullmatch(labels.get("device", ""))

    bytes_in, bytes_out = (
        grown.total(f"node_network_{way}_bytes_total", is_outside) for way in ("receive", "transmit")
    )
    wrong = [
        grown.total(f"node_network_{way}_{what}_total", is_outside)
        for way in ("receive", "transmit")
        for what in ("errs", "drop")
    ]
    known = [one for one in wrong if one is not None]
    return {
        "network_in_mb_s": None if bytes_in is None else bytes_in / elapsed / 1e6,
        "network_out_mb_s": None if bytes_out is None else bytes_out / elapsed / 1e6,
        "network_errors_per_s": sum(known) / elapsed if known else None,
    }


def _http(grown: _Grown, elapsed: float) -> dict[str, float | None]:
    """What an instrumented service says of its requests; its label for the answer's status is `code` or `status`."""

    def failed(labels: Labels) -> bool:
        return labels.get("code", labels.get("status", "")).startswith("5")

    asked = grown.total("http_requests_total", lambda _: True)
    spent = grown.total("http_request_duration_seconds_sum", lambda _: True)
    timed = grown.total("http_request_duration_seconds_count", lambda _: True)
    if asked is None:
        return {}
    wrong = grown.total("http_requests_total", failed) or 0.0
    latency = 1e3 * spent / timed if spent is not None and timed else None
    return {
        "requests_per_s": asked / elapsed,
        "error_percent": _percent(wrong / asked) if asked else 0.0,
        "latency_ms": latency if timed or spent is None else 0.0,
    }


def _percent(share: float) -> float:
    """A share in percent, within what a percentage can be: clocks and counters are read one after the other."""
    return min(100.0, max(0.0, 100 * share))
