"""A /metrics page in the contract's units, compared with values computed by hand, and arbitrary pages."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.fleet.contract import METRIC_INDEX, METRIC_NAMES, METRICS
from forecastd.fleet.ingest.exposition_parser import MetricsPage, MetricsPageError, contract_metrics, parse_page

GIB = 2**30


def node_page(seconds: float = 0.0, **changed: float) -> str:
    """A node_exporter page of a machine with two cores, `seconds` after the first; its rates are round numbers.

    CPU: 40 % busy, 10 % waiting. Disk sda: 60 % busy, 100 requests/s of 5 ms. eth0: 12 MB/s in, 3 out, 2 errors/s.
    """
    seconds_running = {"idle": 0.5, "iowait": 0.1, "user": 0.25, "system": 0.1, "steal": 0.05}
    lines = [
        "# HELP node_cpu_seconds_total Seconds the CPUs spent in each mode.",
        "# TYPE node_cpu_seconds_total counter",
    ]
    lines += [
        f'node_cpu_seconds_total{{cpu="{cpu}",mode="{mode}"}} {1_000 + share * seconds!r}'
        for cpu in "01"
        for mode, share in seconds_running.items()
    ]
    numbers: dict[str, float] = {
        "node_load1": 3.0,
        "node_memory_MemTotal_bytes": 16 * GIB,
        "node_memory_MemAvailable_bytes": 4 * GIB,
        "node_memory_SwapTotal_bytes": 8 * GIB,
        "node_memory_SwapFree_bytes": 6 * GIB,
        'node_filesystem_size_bytes{device="/dev/sda1",fstype="ext4",mountpoint="/"}': 100e9,
        'node_filesystem_free_bytes{device="/dev/sda1",fstype="ext4",mountpoint="/"}': 30e9,
        'node_filesystem_avail_bytes{device="/dev/sda1",fstype="ext4",mountpoint="/"}': 20e9,  # 70 of 90 used
        'node_filesystem_size_bytes{device="tmpfs",fstype="tmpfs",mountpoint="/run"}': 1e9,
        'node_filesystem_avail_bytes{device="tmpfs",fstype="tmpfs",mountpoint="/run"}': 0.0,
        'node_filesystem_size_bytes{device="/dev/sr0",fstype="ext4",mountpoint="/cd"}': 1e9,
        'node_filesystem_avail_bytes{device="/dev/sr0",fstype="ext4",mountpoint="/cd"}': 0.0,
        'node_filesystem_readonly{device="/dev/sr0",fstype="ext4",mountpoint="/cd"}': 1.0,
        'node_disk_io_time_seconds_total{device="sda"}': 50 + 0.6 * seconds,
        'node_disk_io_time_seconds_total{device="loop0"}': 50 + 0.99 * seconds,
        'node_network_receive_bytes_total{device="eth0"}': 1e9 + 12e6 * seconds,
        'node_network_receive_bytes_total{device="lo"}': 1e9 + 900e6 * seconds,
        'node_network_transmit_bytes_total{device="eth0"}': 2e9 + 3e6 * seconds,
        'node_network_receive_errs_total{device="eth0"}': 1.5 * seconds,
        'node_network_transmit_drop_total{device="eth0"}': 0.5 * seconds,
    }
    for device in ("sda", "dm-0"):  # dm-0 is stacked on sda
        numbers |= {
            f'node_disk_reads_completed_total{{device="{device}"}}': 7 + 60 * seconds,
            f'node_disk_writes_completed_total{{device="{device}"}}': 9 + 40 * seconds,
            f'node_disk_read_time_seconds_total{{device="{device}"}}': 0.3 * seconds,
            f'node_disk_write_time_seconds_total{{device="{device}"}}': 0.2 * seconds,
        }
    lines += [f"{name} {value!r}" for name, value in (numbers | changed).items()]
    lines += ['go_gc_duration_seconds{quantile="0.5"} 0.1', "this line is foreign and malformed {"]
    return "\n".join(lines) + "\n"


GAUGES = {"load_per_core": 1.5, "memory_percent": 75.0, "swap_percent": 25.0, "disk_percent": 100 * 70 / 90}
RATES = {
    "cpu_percent": 40.0, "cpu_iowait_percent": 10.0, "disk_busy_percent": 60.0, "disk_latency_ms": 5.0,
    "network_in_mb_s": 12.0, "network_out_mb_s": 3.0, "network_errors_per_s": 2.0,
}  # fmt: skip


@pytest.mark.parametrize("elapsed", [1.0, 5.0, 60.0])
def test_counters_need_two_pages(elapsed: float) -> None:
    first, second = parse_page(node_page()), parse_page(node_page(elapsed))
    assert contract_metrics(first, None, 0.0) == pytest.approx(GAUGES)
    assert contract_metrics(second, first, elapsed) == pytest.approx(GAUGES | RATES)


def test_reset_counter_gives_no_rate() -> None:
    later = node_page(5.0, **{'node_network_receive_bytes_total{device="eth0"}': 100.0})
    metrics = contract_metrics(parse_page(later), parse_page(node_page()), 5.0)
    assert metrics == pytest.approx(
        {name: value for name, value in (GAUGES | RATES).items() if name != "network_in_mb_s"}
    )
    rebooted = contract_metrics(parse_page(node_page(0.0)), parse_page(node_page(1_000.0)), 5.0)
    assert rebooted == pytest.approx(GAUGES)


def test_new_device_is_ignored_once() -> None:
    later = node_page(5.0, **{'node_network_receive_bytes_total{device="eth1"}': 77e9})
    assert contract_metrics(parse_page(later), parse_page(node_page()), 5.0)["network_in_mb_s"] == pytest.approx(12.0)


def test_no_swap_and_idle_disk_are_zero() -> None:
    calm = {"node_memory_SwapTotal_bytes": 0.0, "node_memory_SwapFree_bytes": 0.0}
    first = parse_page(node_page(0.0, **calm))
    metrics = contract_metrics(first, first, 5.0)
    assert metrics["swap_percent"] == 0.0
    assert (metrics["disk_busy_percent"], metrics["disk_latency_ms"]) == (0.0, 0.0)
    assert "cpu_percent" not in metrics  # no time has passed


def test_memory_without_available_uses_free() -> None:
    text = "\n".join(line for line in node_page().splitlines() if "MemAvailable" not in line)
    text += f"\nnode_memory_MemFree_bytes {GIB}\nnode_memory_Buffers_bytes {GIB}\nnode_memory_Cached_bytes {6 * GIB}\n"
    assert contract_metrics(parse_page(text), None, 0.0)["memory_percent"] == pytest.approx(50.0)


def http_page(succeeded: float, failed: float, duration: float, label: str = "code") -> str:
    return (
        f'http_requests_total{{{label}="200",method="get"}} {succeeded!r}\n'
        f'http_requests_total{{{label}="503",method="get"}} {failed!r}\n'
        f"http_request_duration_seconds_sum {duration!r}\nhttp_request_duration_seconds_count {succeeded + failed!r}\n"
    )


@pytest.mark.parametrize("label", ["code", "status"])
def test_http_metrics_give_rate_errors_latency(label: str) -> None:
    first, second = parse_page(http_page(100, 5, 3.0, label)), parse_page(http_page(190, 15, 8.0, label))
    assert contract_metrics(first, None, 0.0) == {}
    expected = {"requests_per_s": 20.0, "error_percent": 10.0, "latency_ms": 50.0}
    assert contract_metrics(second, first, 5.0) == pytest.approx(expected)
    assert contract_metrics(first, first, 5.0) == pytest.approx(dict.fromkeys(expected, 0.0))


@pytest.mark.parametrize("prefix", ["", "forecastd_"])
def test_contract_names_are_used_directly(prefix: str) -> None:
    page = parse_page("".join(f"{prefix}{name} {index + 1}.5\n" for index, name in enumerate(METRIC_NAMES)))
    assert contract_metrics(page, None, 0.0) == {name: index + 1.5 for index, name in enumerate(METRIC_NAMES)}


def test_contract_names_override_derived_metrics() -> None:
    text = node_page(5.0) + 'cpu_percent{core="0"} 12\ncpu_percent{core="1"} 77\nforecastd_latency_ms 9\nlatency_ms 1\n'
    metrics = contract_metrics(parse_page(text), parse_page(node_page()), 5.0)
    assert (metrics["cpu_percent"], metrics["latency_ms"]) == (77.0, 9.0)


def test_page_nan_is_ignored() -> None:
    assert contract_metrics(parse_page("cpu_percent NaN\nmemory_percent 3\n"), None, 0.0) == {"memory_percent": 3.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no metrics of node_exporter"),
        ("<html><body>It works!</body></html>", "no metrics of node_exporter"),
        ("cpu_percent NaN\n", "no metrics of node_exporter"),
        ("some_other_metric 1\n", "no metrics of node_exporter"),
        ("cpu_percent twelve\n", "text format"),
        ('node_cpu_seconds_total{cpu="0",mode="idle" 1\n', "text format"),
    ],
)
def test_useless_page_raises_with_reason(text: str, message: str) -> None:
    with pytest.raises(MetricsPageError, match=message):
        parse_page(text)


@given(
    st.text(),
    st.lists(st.sampled_from(["node_load1", "cpu_percent", "node_disk_", "{", '"', "=", " ", "\n", "1e999", "#"])),
)
def test_any_page_raises_only_page_error(text: str, parts: list[str]) -> None:
    for page in (text, "".join(parts)):
        try:
            metrics = parse_page(page)
        except MetricsPageError:
            continue
        assert set(contract_metrics(metrics, metrics, 5.0)) <= set(METRIC_NAMES)


@given(
    st.lists(st.floats(0, 1e12), min_size=5, max_size=5), st.lists(st.floats(0, 1e12), min_size=5, max_size=5),
    st.floats(0.01, 100),
)  # fmt: skip
def test_percentages_stay_in_range(before: list[float], after: list[float], elapsed: float) -> None:
    modes = ("idle", "iowait", "user", "system", "steal")

    def page(values: list[float]) -> MetricsPage:
        lines = [
            f'node_cpu_seconds_total{{mode="{mode}"}} {value!r}' for mode, value in zip(modes, values, strict=True)
        ]
        return parse_page("\n".join([*lines, f'node_disk_io_time_seconds_total{{device="sda"}} {values[0]!r}', ""]))

    metrics: dict[str, Any] = contract_metrics(page(after), page(before), elapsed)
    for name, value in metrics.items():
        metric = METRICS[METRIC_INDEX[name]]
        assert math.isfinite(value)
        assert metric.low <= value <= metric.high
