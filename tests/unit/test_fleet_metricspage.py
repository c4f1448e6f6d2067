"""A /metrics page in the contract's units: against values that were worked out by hand, and whatever else a page may hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.fleet.contract import INDEX, METRICS, NAMES
from forecastd.fleet.metricspage import Page, PageError, measured, read_page

GIB = 2**30


def node_page(seconds: float = 0.0, **changed: float) -> str:
    """A node_exporter's page of a machine with two cores, `seconds` after the first; its rates are round numbers.

    CPU: 40 % busy, 10 % waiting. Disk sda: 60 % busy, 100 requests a second of 5 ms. eth0: 12 MB/s in, 3 out, 2 errors.
    """
    at = {"idle": 0.5, "iowait": 0.1, "user": 0.25, "system": 0.1, "steal": 0.05}
    lines = [
        "# HELP node_cpu_seconds_total Seconds the CPUs spent in each mode.",
        "# TYPE node_cpu_seconds_total counter",
    ]
    lines += [
        f'node_cpu_seconds_total{{cpu="{cpu}",mode="{mode}"}} {1_000 + share * seconds!r}'
        for cpu in "01"
        for mode, share in at.items()
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
    for device in ("sda", "dm-0"):  # the second is made of the first
        numbers |= {
            f'node_disk_reads_completed_total{{device="{device}"}}': 7 + 60 * seconds,
            f'node_disk_writes_completed_total{{device="{device}"}}': 9 + 40 * seconds,
            f'node_disk_read_time_seconds_total{{device="{device}"}}': 0.3 * seconds,
            f'node_disk_write_time_seconds_total{{device="{device}"}}': 0.2 * seconds,
        }
    lines += [f"{name} {value!r}" for name, value in (numbers | changed).items()]
    lines += ['go_gc_duration_seconds{quantile="0.5"} 0.1', "this line is of another's, and broken {"]
    return "\n".join(lines) + "\n"


GAUGES = {"load_per_core": 1.5, "memory_percent": 75.0, "swap_percent": 25.0, "disk_percent": 100 * 70 / 90}
RATES = {
    "cpu_percent": 40.0, "cpu_iowait_percent": 10.0, "disk_busy_percent": 60.0, "disk_latency_ms": 5.0,
    "network_in_mb_s": 12.0, "network_out_mb_s": 3.0, "network_errors_per_s": 2.0,
}  # fmt: skip


@pytest.mark.parametrize("elapsed", [1.0, 5.0, 60.0])
def test_what_is_counted_takes_two_pages_and_what_is_measured_one(elapsed: float) -> None:
    first, second = read_page(node_page()), read_page(node_page(elapsed))
    assert measured(first, None, 0.0) == pytest.approx(GAUGES)
    assert measured(second, first, elapsed) == pytest.approx(GAUGES | RATES)


def test_what_was_reset_says_nothing_and_the_rest_goes_on() -> None:
    later = node_page(5.0, **{'node_network_receive_bytes_total{device="eth0"}': 100.0})
    found = measured(read_page(later), read_page(node_page()), 5.0)
    assert found == pytest.approx(
        {name: value for name, value in (GAUGES | RATES).items() if name != "network_in_mb_s"}
    )
    rebooted = measured(read_page(node_page(0.0)), read_page(node_page(1_000.0)), 5.0)
    assert rebooted == pytest.approx(GAUGES)


def test_a_device_that_came_meanwhile_costs_nothing() -> None:
    later = node_page(5.0, **{'node_network_receive_bytes_total{device="eth1"}': 77e9})
    assert measured(read_page(later), read_page(node_page()), 5.0)["network_in_mb_s"] == pytest.approx(12.0)


def test_machines_without_swap_or_with_an_idle_disk_are_at_zero() -> None:
    calm = {"node_memory_SwapTotal_bytes": 0.0, "node_memory_SwapFree_bytes": 0.0}
    first = read_page(node_page(0.0, **calm))
    found = measured(first, first, 5.0)
    assert found["swap_percent"] == 0.0
    assert (found["disk_busy_percent"], found["disk_latency_ms"]) == (0.0, 0.0)
    assert "cpu_percent" not in found  # time stood still


def test_an_old_kernel_has_no_available_memory() -> None:
    text = "\n".join(line for line in node_page().splitlines() if "MemAvailable" not in line)
    text += f"\nnode_memory_MemFree_bytes {GIB}\nnode_memory_Buffers_bytes {GIB}\nnode_memory_Cached_bytes {6 * GIB}\n"
    assert measured(read_page(text), None, 0.0)["memory_percent"] == pytest.approx(50.0)


def http_page(good: float, bad: float, spent: float, label: str = "code") -> str:
    return (
        f'http_requests_total{{{label}="200",method="get"}} {good!r}\n'
        f'http_requests_total{{{label}="503",method="get"}} {bad!r}\n'
        f"http_request_duration_seconds_sum {spent!r}\nhttp_request_duration_seconds_count {good + bad!r}\n"
    )


@pytest.mark.parametrize("label", ["code", "status"])
def test_an_http_service_tells_its_rate_errors_and_latency(label: str) -> None:
    first, second = read_page(http_page(100, 5, 3.0, label)), read_page(http_page(190, 15, 8.0, label))
    assert measured(first, None, 0.0) == {}
    expected = {"requests_per_s": 20.0, "error_percent": 10.0, "latency_ms": 50.0}
    assert measured(second, first, 5.0) == pytest.approx(expected)
    assert measured(first, first, 5.0) == pytest.approx(dict.fromkeys(expected, 0.0))


@pytest.mark.parametrize("prefix", ["", "forecastd_"])
def test_a_page_with_the_contracts_own_names_is_taken_as_it_is(prefix: str) -> None:
    page = read_page("".join(f"{prefix}{name} {place + 1}.5\n" for place, name in enumerate(NAMES)))
    assert measured(page, None, 0.0) == {name: place + 1.5 for place, name in enumerate(NAMES)}


def test_our_names_go_before_what_is_worked_out_and_the_worst_of_several_counts() -> None:
    text = node_page(5.0) + 'cpu_percent{core="0"} 12\ncpu_percent{core="1"} 77\nforecastd_latency_ms 9\nlatency_ms 1\n'
    found = measured(read_page(text), read_page(node_page()), 5.0)
    assert (found["cpu_percent"], found["latency_ms"]) == (77.0, 9.0)


def test_nan_is_no_value() -> None:
    assert measured(read_page("cpu_percent NaN\nmemory_percent 3\n"), None, 0.0) == {"memory_percent": 3.0}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "neither"),
        ("<html><body>It works!</body></html>", "neither"),
        ("cpu_percent NaN\n", "neither"),
        ("some_other_metric 1\n", "neither"),
        ("cpu_percent twelve\n", "text format"),
        ('node_cpu_seconds_total{cpu="0",mode="idle" 1\n', "text format"),
    ],
)
def test_a_page_that_is_of_no_use_says_why(text: str, told: str) -> None:
    with pytest.raises(PageError, match=told):
        read_page(text)


@given(
    st.text(),
    st.lists(st.sampled_from(["node_load1", "cpu_percent", "node_disk_", "{", '"', "=", " ", "\n", "1e999", "#"])),
)
def test_no_page_brings_anything_but_a_page_error(text: str, pieces: list[str]) -> None:
    for page in (text, "".join(pieces)):
        try:
            found = read_page(page)
        except PageError:
            continue
        assert set(measured(found, found, 5.0)) <= set(NAMES)


@given(
    st.lists(st.floats(0, 1e12), min_size=5, max_size=5), st.lists(st.floats(0, 1e12), min_size=5, max_size=5),
    st.floats(0.01, 100),
)  # fmt: skip
def test_whatever_was_counted_a_percentage_is_one(before: list[float], after: list[float], elapsed: float) -> None:
    modes = ("idle", "iowait", "user", "system", "steal")

    def page(values: list[float]) -> Page:
        lines = [
            f'node_cpu_seconds_total{{mode="{mode}"}} {value!r}' for mode, value in zip(modes, values, strict=True)
        ]
        return read_page("\n".join([*lines, f'node_disk_io_time_seconds_total{{device="sda"}} {values[0]!r}', ""]))

    found: dict[str, Any] = measured(page(after), page(before), elapsed)
    for name, value in found.items():
        metric = METRICS[INDEX[name]]
        assert math.isfinite(value)
        assert metric.low <= value <= metric.high
