"""The nonces that are open at a height."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.localnet.topics import MAX_OPEN_NONCES, TopicSpec, parse_topic, topics_from_json, topics_to_json

TOPICS = st.builds(
    TopicSpec,
    id=st.integers(1, 9),
    epoch_length=st.integers(1, 30),
    worker_submission_window=st.integers(1, 90),
    first_nonce=st.integers(1, 40),
)


@given(TOPICS, st.integers(1, 400))
def test_open_nonces_are_epoch_starts_with_open_windows(topic: TopicSpec, height: int) -> None:
    expected = [nonce for nonce in range(height, 0, -1) if topic.is_nonce(nonce) and topic.accepts(nonce, height)]
    assert topic.open_nonces(height) == expected[:MAX_OPEN_NONCES]


@given(TOPICS, st.integers(1, 400))
def test_window_lasts_exactly_its_blocks(topic: TopicSpec, nonce: int) -> None:
    taking = [height for height in range(nonce + 200) if topic.accepts(nonce, height)]
    assert taking == list(range(nonce, nonce + topic.worker_submission_window))


@given(TOPICS, st.integers(1, 400))
def test_newest_nonce_is_the_last_epoch_start(topic: TopicSpec, height: int) -> None:
    starts = [nonce for nonce in range(1, height + 1) if topic.is_nonce(nonce)]
    assert topic.newest_nonce(height) == (starts[-1] if starts else None)


@given(st.integers(1, 5000))
def test_window_as_long_as_the_epoch_keeps_one_nonce_open(height: int) -> None:
    assert len(TopicSpec(67).open_nonces(height)) == 1


@given(TOPICS, st.integers(1, 400))
def test_starting_topic_has_a_window_open_for_the_next_block(topic: TopicSpec, height: int) -> None:
    starting_topic = topic.starting_at(height)
    nonce = starting_topic.newest_nonce(height)
    assert nonce is not None
    if topic.worker_submission_window > 1:
        assert starting_topic.accepts(nonce, height + 1)
    assert starting_topic.starting_at(height) == starting_topic


def test_inactive_topic_issues_no_nonces() -> None:
    assert TopicSpec(1, active=False).open_nonces(1000) == []


@pytest.mark.parametrize(
    ("text", "lengths"),
    [("67", (67, 720, 720)), ("42:60", (42, 60, 60)), ("1:60:12", (1, 60, 12)), ("1:10:40", (1, 10, 40))],
)
def test_parse_topic_reads_lengths(text: str, lengths: tuple[int, int, int]) -> None:
    topic = parse_topic(text)
    assert (topic.id, topic.epoch_length, topic.worker_submission_window) == lengths


@pytest.mark.parametrize("text", ["", "x", "1:", "1:2:3:4", "-1", "1:0", "0", "1:5:0", "1.5", "²"])
def test_parse_topic_invalid_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"topic|ID"):
        parse_topic(text)


@given(st.lists(TOPICS, max_size=4).map(tuple))
def test_topics_json_round_trips(topics: tuple[TopicSpec, ...]) -> None:
    topics = (*topics, TopicSpec(99, workers=("allo1x",), active=False))
    assert topics_from_json(topics_to_json(topics)) == topics
