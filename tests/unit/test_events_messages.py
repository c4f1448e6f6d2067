"""What is read from a node's websocket: the chain's events in every spelling, and nothing from rubbish."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.chain.events import MOST_SUBSCRIPTIONS, Opened, Told, check_websocket, queries, read_message, shown
from forecastd.errors import NeedsHuman
from forecastd.localnet.chain import Block
from forecastd.localnet.topics import TopicSpec
from forecastd.localnet.websocket import block_events, matches

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
@pytest.mark.parametrize("spelt", ['"67"', "67", 67])
def test_an_opening_is_read_in_every_spelling_of_its_numbers(version: str, spelt: object) -> None:
    told = read_message(
        message(
            f"emissions.{version}.EventWorkerSubmissionWindowOpened", {"topic_id": spelt, "nonce_block_height": spelt}
        )
    )
    assert told == Told("opened-0", 21, None, (Opened(67, 67),))


@pytest.mark.parametrize(
    "attributes",
    [{}, {"topic_id": "67"}, {"topic_id": "-1", "nonce_block_height": "5"}, {"topic_id": "x", "nonce_block_height": "5"},
     {"topic_id": "67", "nonce_block_height": "9" * 5000}, {"topic_id": "67", "nonce_block_height": None},
     {"topic_id": "67", "nonce_block_height": 1.5}, {"topic_id": True, "nonce_block_height": 5}],
)  # fmt: skip
def test_an_opening_that_makes_no_sense_is_none(attributes: dict[str, Any]) -> None:
    assert read_message(message("emissions.v10.EventWorkerSubmissionWindowOpened", attributes)).opened == ()


def test_another_event_is_no_opening() -> None:
    attributes = {"topic_id": "67", "nonce_block_height": "21"}
    assert read_message(message("emissions.v10.EventWorkerSubmissionWindowClosed", attributes)).opened == ()


def test_the_chain_id_is_read_from_the_status_and_from_each_header() -> None:
    status = {"id": "status", "result": {"node_info": {"network": "a-1"}, "sync_info": {"latest_block_height": "9"}}}
    header = {"id": "headers", "result": {"data": {"value": {"header": {"chain_id": "a-1", "height": "10"}}}}}
    assert read_message(json.dumps(status)) == Told("status", 9, "a-1")
    assert read_message(json.dumps(header)) == Told("headers", 10, "a-1")


@given(st.text() | st.binary())
def test_rubbish_tells_nothing_and_raises_nothing(text: str | bytes) -> None:
    assert read_message(text) == Told()


@given(JSON)
def test_rubbish_under_the_right_names_raises_nothing(document: Any) -> None:
    told = read_message(json.dumps(document))
    assert told.opened == ()
    assert told.height is None or told.height >= 0


def test_what_is_nested_too_deeply_tells_nothing() -> None:
    assert read_message("[" * 1_000_000) == Told()


@pytest.mark.parametrize("topics", [[], [67], [67, 69], [67, 69, 71], list(range(1, 200))])
def test_a_client_never_asks_for_more_subscriptions_than_a_node_gives(topics: list[int]) -> None:
    assert len(queries(topics)) <= MOST_SUBSCRIPTIONS


@pytest.mark.parametrize("version", ["v9", "v10"])
@pytest.mark.parametrize("topics", [[67], [67, 69], [67, 69, 71]])
def test_the_queries_ask_for_the_openings_of_their_topics(version: str, topics: list[int]) -> None:
    for number in topics:
        spec = TopicSpec(number, epoch_length=20, worker_submission_window=10)
        events = block_events(Block(21, 0.0, (), opened=((spec, 21),), closed=()), version)
        assert any(matches(query, events) for query in queries(topics).values())
        closing = block_events(Block(31, 0.0, (), opened=(), closed=((spec, 21),)), version)
        assert not any(matches(query, closing) for query in queries(topics).values())


@pytest.mark.parametrize("url", ["wss://a.example/websocket", "ws://127.0.0.1:26657/websocket?key=s3cret", " ws://a "])
def test_a_websocket_is_called_by_its_host_and_never_by_its_path(url: str) -> None:
    assert check_websocket(url, 1) == url.strip()
    assert "s3cret" not in shown(url)


@pytest.mark.parametrize(
    "url", ["", "a.example", "https://a.example", "ws://", "ws://u:s3cret@a", "ws://a:x", "ws://a#b"]
)
def test_what_is_no_websocket_is_refused_by_its_position(url: str) -> None:
    with pytest.raises(NeedsHuman, match="Item 2 of EVENT_ENDPOINTS") as caught:
        check_websocket(url, 2)
    assert "s3cret" not in str(caught.value)
