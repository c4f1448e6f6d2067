"""Parsing messages of a node's websocket: every form of the chain's events, and any garbage."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.chain.events import (
    MAX_SUBSCRIPTIONS,
    EventMessage,
    WindowOpened,
    check_websocket,
    display_name,
    read_message,
    subscription_queries,
)
from forecastd.errors import NeedsHuman
from forecastd.localnet.chain import ChainBlock
from forecastd.localnet.topics import TopicSpec
from forecastd.localnet.websocket import block_events, matches_query

NAMES = ["id", "error", "result", "data", "value", "header", "height", "chain_id", "events", "type", "attributes", "key",
         "node_info", "network", "sync_info", "latest_block_height"]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=8,
)


def message(kind: str, attributes: dict[str, Any]) -> str:
    event = {"type": kind, "attributes": [{"key": key, "value": value} for key, value in attributes.items()]}
    value = {"height": "21", "events": [event]}
    return json.dumps(
        {"id": "opened-0", "result": {"data": {"type": "tendermint/event/NewBlockEvents", "value": value}}}
    )


@pytest.mark.parametrize("version", ["v9", "v10"])
@pytest.mark.parametrize("number_text", ['"67"', "67", 67])
def test_read_message_accepts_every_number_format(version: str, number_text: object) -> None:
    event_message = read_message(
        message(
            f"emissions.{version}.EventWorkerSubmissionWindowOpened",
            {"topic_id": number_text, "nonce_block_height": number_text},
        )
    )
    assert event_message == EventMessage("opened-0", 21, None, (WindowOpened(67, 67),))


@pytest.mark.parametrize(
    "attributes",
    [{}, {"topic_id": "67"}, {"topic_id": "-1", "nonce_block_height": "5"}, {"topic_id": "x", "nonce_block_height": "5"},
     {"topic_id": "67", "nonce_block_height": "9" * 5000}, {"topic_id": "67", "nonce_block_height": None},
     {"topic_id": "67", "nonce_block_height": 1.5}, {"topic_id": True, "nonce_block_height": 5}],
)  # fmt: skip
def test_read_message_invalid_window_is_ignored(attributes: dict[str, Any]) -> None:
    assert read_message(message("emissions.v10.EventWorkerSubmissionWindowOpened", attributes)).opened_windows == ()


def test_read_message_other_event_is_ignored() -> None:
    attributes = {"topic_id": "67", "nonce_block_height": "21"}
    assert read_message(message("emissions.v10.EventWorkerSubmissionWindowClosed", attributes)).opened_windows == ()


def test_read_message_attributes_of_another_shape_are_ignored() -> None:
    event = {"type": "emissions.v10.EventWorkerSubmissionWindowOpened", "attributes": [{"key": ["topic_id"]}, 7, None]}
    assert read_message(json.dumps({"result": {"data": {"value": {"events": [event]}}}})).opened_windows == ()


def test_read_message_chain_id_from_status_and_header() -> None:
    status = {"id": "status", "result": {"node_info": {"network": "a-1"}, "sync_info": {"latest_block_height": "9"}}}
    header = {"id": "headers", "result": {"data": {"value": {"header": {"chain_id": "a-1", "height": "10"}}}}}
    assert read_message(json.dumps(status)) == EventMessage("status", 9, "a-1")
    assert read_message(json.dumps(header)) == EventMessage("headers", 10, "a-1")


@given(st.text() | st.binary())
def test_read_message_garbage_is_empty(text: str | bytes) -> None:
    assert read_message(text) == EventMessage()


@given(JSON)
def test_read_message_garbage_under_known_keys_never_raises(document: Any) -> None:
    event_message = read_message(json.dumps(document))
    assert event_message.opened_windows == ()
    assert event_message.height is None or event_message.height >= 0


def test_read_message_deep_nesting_is_empty() -> None:
    assert read_message("[" * 1_000_000) == EventMessage()


@pytest.mark.parametrize("topics", [[], [67], [67, 69], [67, 69, 71], list(range(1, 200))])
def test_queries_stay_within_the_subscription_limit(topics: list[int]) -> None:
    assert len(subscription_queries(topics)) <= MAX_SUBSCRIPTIONS


@pytest.mark.parametrize("version", ["v9", "v10"])
@pytest.mark.parametrize("topics", [[67], [67, 69], [67, 69, 71]])
def test_queries_match_the_windows_of_their_topics(version: str, topics: list[int]) -> None:
    for number in topics:
        spec = TopicSpec(number, epoch_length=20, worker_submission_window=10)
        events = block_events(ChainBlock(21, 0.0, (), opened_windows=((spec, 21),), closed_windows=()), version)
        assert any(matches_query(query, events) for query in subscription_queries(topics).values())
        closing = block_events(ChainBlock(31, 0.0, (), opened_windows=(), closed_windows=((spec, 21),)), version)
        assert not any(matches_query(query, closing) for query in subscription_queries(topics).values())


@pytest.mark.parametrize("url", ["wss://a.example/websocket", "ws://127.0.0.1:26657/websocket?key=s3cret", " ws://a "])
def test_display_name_hides_the_path(url: str) -> None:
    assert check_websocket(url, 1) == url.strip()
    assert "s3cret" not in display_name(url)


@pytest.mark.parametrize(
    "url", ["", "a.example", "https://a.example", "ws://", "ws://u:s3cret@a", "ws://a:x", "ws://a#b"]
)
def test_check_websocket_invalid_url_is_named_by_position(url: str) -> None:
    with pytest.raises(NeedsHuman, match="Item 2 of EVENT_ENDPOINTS") as caught:
        check_websocket(url, 2)
    assert "s3cret" not in str(caught.value)
