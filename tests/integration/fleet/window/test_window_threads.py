"""The window under concurrent calls."""

from __future__ import annotations

import threading

import numpy as np

from forecastd.fleet.contract import METRIC_COUNT
from forecastd.fleet.ingest.feed import FleetRows
from forecastd.fleet.window.window import FleetWindow

STEP = 5
START = 340_000_000  # a tick


def test_window_is_thread_safe() -> None:
    fleet_window = FleetWindow(STEP, 50, 400)
    fleet_window.advance(START)
    failures: list[BaseException] = []

    def work(part: int) -> None:
        try:
            for tick in range(1, 30):
                names = [f"s{part}-{index}" for index in range(40)]
                fleet_window.put(
                    FleetRows.from_values(
                        names, [(START + tick) * STEP + part] * 40, np.full((40, METRIC_COUNT), part + 1.0), step=STEP
                    )
                )
                fleet_window.block(fleet_window.newest, 10)
                fleet_window.unsaved()
                fleet_window.advance(START + tick - 1)
        except BaseException as error:  # noqa: BLE001 - any exception fails the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert len(fleet_window) == 160
    block = fleet_window.block(START + 20, 1)
    for server, values in zip(block.servers, block.values[:, 0], strict=True):
        assert set(values.tolist()) == {float(server[1]) + 1.0}
