"""Reads the contract's metrics from a /metrics page in Prometheus' text format.

It knows the names of node_exporter 1.x (collectors cpu, meminfo, diskstats, filesystem, loadavg, netdev), of the
usual HTTP instrumentation (http_requests_total, http_request_duration_seconds), and the contract's own names.

Invariant: the rate of a counter needs two pages. A counter that decreased was reset, and gives no rate until the next
page.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from forecastd.fleet.contract import METRIC_NAMES

OWN_PREFIX = "forecastd_"
Labels = Mapping[str, str]
Series = tuple[str, frozenset[tuple[str, str]]]

_IGNORED_DISKS = re.compile(r"(loop|ram|zram|sr|fd|nbd)\d+")
_STACKED_DISKS = re.compile(r"(dm-|md)\d+")  # their requests are counted again in the underlying disks
_IGNORED_INTERFACES = re.compile(
    r"(lo|veth.*|docker.*|br-.*|virbr.*|cni.*|cali.*|flannel.*|bond\d+|team\d+|dummy.*|ifb.*)"
)
_IGNORED_FILE_SYSTEMS = frozenset({
    "tmpfs", "devtmpfs", "ramfs", "overlay", "squashfs", "iso9660", "udf", "autofs", "proc", "sysfs", "cgroup", "cgroup2",
    "nsfs", "tracefs", "debugfs", "efivarfs", "erofs", "fuse.lxcfs", "rpc_pipefs",
})  # fmt: skip
_HTTP_NAMES = ("http_requests_total", "http_request_duration_seconds_sum", "http_request_duration_seconds_count")
_ACCEPTED_PREFIXES = (
    *_HTTP_NAMES, "node_cpu_seconds_total", "node_load1", "node_memory_", "node_filesystem_", "node_disk_", "node_network_",
    OWN_PREFIX, *METRIC_NAMES,
)  # fmt: skip


class MetricsPageError(ValueError):
    """The page cannot be used; the message says why."""


@dataclass(frozen=True)
class MetricsPage:
    """The samples of a page by name and labels, without NaN."""

    samples: Mapping[str, Mapping[frozenset[tuple[str, str]], float]]

    def max_value(self, name: str) -> float | None:
        """The greatest sample with this name: for every metric a higher value is worse."""
        return max(self.samples.get(name, {}).values(), default=None)


def parse_page(text: str) -> MetricsPage:
    """The samples of a page that may matter.

    Raises:
        MetricsPageError: a line is malformed, or there is no such sample.
    """
    lines = "\n".join(line for line in text.splitlines() if line.startswith(_ACCEPTED_PREFIXES))
    samples: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    try:
        for family in text_string_to_metric_families(lines + "\n"):
            for sample in family.samples:
                if not math.isnan(sample.value):
                    samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = float(sample.value)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise MetricsPageError(f"it is not a metrics page in Prometheus' text format: {error}") from None
    if not samples:
        raise MetricsPageError(
            "it has no metrics of node_exporter or of the contract; docs/fleet-feed.md lists the names"
        )
    return MetricsPage(samples)


def contract_metrics(page: MetricsPage, previous: MetricsPage | None, elapsed: float) -> dict[str, float]:
    """The contract's metrics in its units, as far as the page has them. `previous` is the page of `elapsed`
    seconds ago."""
    metrics: dict[str, float | None] = {
        "load_per_core": _load_per_core(page),
        "memory_percent": _memory_percent(page),
        "swap_percent": _swap_percent(page),
        "disk_percent": _disk_percent(page),
    }
    if previous is not None and elapsed > 0:
        increases = _CounterIncreases(page, previous)
        metrics |= _cpu_metrics(increases)
        metrics |= _disk_metrics(increases, elapsed)
        metrics |= _network_metrics(increases, elapsed)
        metrics |= _http_metrics(increases, elapsed)
    for name in METRIC_NAMES:  # the contract's own names come first
        for own_name in (name, f"{OWN_PREFIX}{name}"):
            if own_name in page.samples:
                metrics[name] = page.max_value(own_name)
    return {name: value for name, value in metrics.items() if value is not None}


class _CounterIncreases:
    """The increases of a page's counters since the previous page."""

    def __init__(self, page: MetricsPage, previous: MetricsPage) -> None:
        self._page, self._previous = page, previous

    def by_labels(self, name: str) -> list[tuple[Labels, float]]:
        """Labels and increase of each series that both pages have; none if one was reset."""
        now, previous = self._page.samples.get(name, {}), self._previous.samples.get(name, {})
        increases: list[tuple[Labels, float]] = [
            (dict(labels), value - previous[labels]) for labels, value in now.items() if labels in previous
        ]
        return increases if all(increase >= 0 for _, increase in increases) else []

    def total(self, name: str, predicate: Callable[[Labels], bool] | None = None) -> float | None:
        """The increase of all series, or of those whose labels fulfil `predicate`."""
        selected = [increase for labels, increase in self.by_labels(name) if predicate is None or predicate(labels)]
        return sum(selected) if selected else None


def _cpu_metrics(increases: _CounterIncreases) -> dict[str, float | None]:
    seconds_by_mode: defaultdict[str, float] = defaultdict(float)
    for labels, seconds in increases.by_labels("node_cpu_seconds_total"):
        seconds_by_mode[labels.get("mode", "")] += seconds
    total, waits, idle = sum(seconds_by_mode.values()), seconds_by_mode["iowait"], seconds_by_mode["idle"]
    if total <= 0:
        return {}
    return {"cpu_percent": _percent((total - waits - idle) / total), "cpu_iowait_percent": _percent(waits / total)}


def _load_per_core(page: MetricsPage) -> float | None:
    load = page.max_value("node_load1")
    cores = len({dict(labels).get("cpu") for labels in page.samples.get("node_cpu_seconds_total", {})})
    return load / cores if load is not None and cores else None


def _memory_percent(page: MetricsPage) -> float | None:
    total = page.max_value("node_memory_MemTotal_bytes")
    free = page.max_value("node_memory_MemAvailable_bytes")
    if free is None:  # Linux before 3.14
        parts = [page.max_value(f"node_memory_{name}_bytes") for name in ("MemFree", "Buffers", "Cached")]
        free = sum(part for part in parts if part is not None) if parts[0] is not None else None
    return _percent(1 - free / total) if total and free is not None else None


def _swap_percent(page: MetricsPage) -> float | None:
    total, free = page.max_value("node_memory_SwapTotal_bytes"), page.max_value("node_memory_SwapFree_bytes")
    if total is None or free is None:
        return None
    return _percent(1 - free / total) if total else 0.0


def _disk_percent(page: MetricsPage) -> float | None:
    """The fullest file system, computed as `df` does: used space over usable space."""
    sizes = page.samples.get("node_filesystem_size_bytes", {})
    free = page.samples.get("node_filesystem_free_bytes", {})
    read_only = {labels for labels, value in page.samples.get("node_filesystem_readonly", {}).items() if value == 1}
    usages = []
    for labels, available in page.samples.get("node_filesystem_avail_bytes", {}).items():
        size = sizes.get(labels, 0.0)
        if dict(labels).get("fstype") in _IGNORED_FILE_SYSTEMS or labels in read_only or size <= 0:
            continue
        used = size - free.get(labels, available)
        usages.append(_percent(used / (used + available)) if used + available > 0 else 0.0)
    return max(usages, default=None)


def _disk_metrics(increases: _CounterIncreases, elapsed: float) -> dict[str, float | None]:
    def is_disk(labels: Labels) -> bool:
        return not _IGNORED_DISKS.fullmatch(labels.get("device", ""))

    def is_physical(labels: Labels) -> bool:
        return is_disk(labels) and not _STACKED_DISKS.fullmatch(labels.get("device", ""))

    io_times = increases.by_labels("node_disk_io_time_seconds_total")
    busy = max((seconds for labels, seconds in io_times if is_disk(labels)), default=None)
    times = [increases.total(f"node_disk_{kind}_time_seconds_total", is_physical) for kind in ("read", "write")]
    counts = [increases.total(f"node_disk_{kind}s_completed_total", is_physical) for kind in ("read", "write")]
    requests, seconds = sum(count or 0.0 for count in counts), sum(time or 0.0 for time in times)
    latency = 1e3 * seconds / requests if requests else 0.0
    return {
        "disk_busy_percent": None if busy is None else _percent(busy / elapsed),
        "disk_latency_ms": None if None in (*times, *counts) else latency,
    }


def _network_metrics(increases: _CounterIncreases, elapsed: float) -> dict[str, float | None]:
    def is_outside(labels: Labels) -> bool:
        return not _IGNORED_INTERFACES.fullmatch(labels.get("device", ""))

    bytes_in, bytes_out = (
        increases.total(f"node_network_{direction}_bytes_total", is_outside) for direction in ("receive", "transmit")
    )
    problems = [
        increases.total(f"node_network_{direction}_{kind}_total", is_outside)
        for direction in ("receive", "transmit")
        for kind in ("errs", "drop")
    ]
    reported = [count for count in problems if count is not None]
    return {
        "network_in_mb_s": None if bytes_in is None else bytes_in / elapsed / 1e6,
        "network_out_mb_s": None if bytes_out is None else bytes_out / elapsed / 1e6,
        "network_errors_per_s": sum(reported) / elapsed if reported else None,
    }


def _http_metrics(increases: _CounterIncreases, elapsed: float) -> dict[str, float | None]:
    """The metrics of an instrumented HTTP service; its label for the response status is `code` or `status`."""

    def failed(labels: Labels) -> bool:
        return labels.get("code", labels.get("status", "")).startswith("5")

    requests, seconds, timed_requests = (increases.total(name) for name in _HTTP_NAMES)
    if requests is None:
        return {}
    failures = increases.total("http_requests_total", failed) or 0.0
    latency = 1e3 * seconds / timed_requests if seconds is not None and timed_requests else None
    return {
        "requests_per_s": requests / elapsed,
        "error_percent": _percent(failures / requests) if requests else 0.0,
        "latency_ms": latency if timed_requests or seconds is None else 0.0,
    }


def _percent(share: float) -> float:
    """A share in percent, limited to 0 to 100: clock and counters are not read at the same instant."""
    return min(100.0, max(0.0, 100 * share))
