"""Back-off of a slot: frequent replacements wait longer and longer, rare ones never wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forecastd.supervise.policy import BACKOFF_WINDOW_SECONDS, MAX_BACKOFF_SECONDS, MIN_BACKOFF_SECONDS, SlotBackoff


def test_third_replacement_in_five_minutes_backs_off_exponentially() -> None:
    backoff, now, waits = SlotBackoff(), 1000.0, []
    for _ in range(14):  # each child dies as soon as it is started
        waits.append(backoff.record_replacement(now))
        now = max(now, backoff.not_before) + 1
    assert waits[:2] == [0, 0]
    assert waits[2:8] == [MIN_BACKOFF_SECONDS * 2**power for power in range(6)]
    assert set(waits[9:]) == {MAX_BACKOFF_SECONDS}


def test_long_lived_child_resets_backoff() -> None:
    backoff = SlotBackoff()
    waits = [backoff.record_replacement(now) for now in (0, 1, 2)]
    assert waits == [0, 0, MIN_BACKOFF_SECONDS]
    now = backoff.not_before + BACKOFF_WINDOW_SECONDS + 1
    assert backoff.record_replacement(now) == 0
    assert backoff.record_replacement(now + 1) == 0
    assert backoff.record_replacement(now + 2) == MIN_BACKOFF_SECONDS


@given(st.lists(st.floats(0.1, 2000), min_size=1, max_size=40))
def test_backoff_is_bounded_and_rare_replacements_do_not_wait(gaps: list[float]) -> None:
    backoff, now, times = SlotBackoff(), 0.0, []
    for gap in gaps:
        now = max(now, backoff.not_before) + gap
        wait = backoff.record_replacement(now)
        assert wait == 0 or MIN_BACKOFF_SECONDS <= wait <= MAX_BACKOFF_SECONDS
        assert wait == 0 or backoff.not_before == now + wait
        times.append(now)
        if len(times) < 3 or gap > BACKOFF_WINDOW_SECONDS:
            assert wait == 0
