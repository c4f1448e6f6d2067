"""Messages between parent and child: whatever a child writes becomes messages or is named as none, and raises nothing."""

from __future__ import annotations

import json
import socket
import struct
import threading
import tracemalloc
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forecastd.supervise.jobs import BadAnswer, forecast_message, predict_job
from forecastd.supervise.messages import (
    MAX_BODY,
    MAX_HEADER,
    ChannelClosed,
    Decoder,
    GarbledMessage,
    Message,
    encode,
    printable,
    receive,
    send,
)
from models.base import Forecast, ModelInput

ARRAYS = st.one_of(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    hnp.arrays(np.int64, hnp.array_shapes(max_dims=2, max_side=5)),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    hnp.arrays(np.uint8, hnp.array_shapes(max_dims=2, max_side=5)),
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.builds(
    Message,
    kind=st.text(max_size=10),
    launch=st.text(max_size=10),
    fields=st.dictionaries(st.text(max_size=6), PLAIN, max_size=4),
    arrays=st.dictionaries(st.text(max_size=6), ARRAYS, max_size=3),
)


def frame(header: object, body: bytes = b"") -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<II", len(head), len(body)) + head + body


def header(**other: Any) -> dict[str, Any]:
    return {"kind": "result", "launch": "l", "fields": {}, "arrays": {}, **other}


@given(st.lists(MESSAGES, max_size=4), st.lists(st.integers(0, 4000), max_size=8))
def test_messages_arrive_as_they_were_sent_in_whatever_pieces(messages: list[Message], cuts: list[int]) -> None:
    stream = b"".join(encode(message) for message in messages)
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    decoder = Decoder()
    got = [message for begin, end in pairwise(places) for message in decoder.feed(stream[begin:end])]
    assert decoder.garbled == ""
    assert len(got) == len(messages)
    for found, wanted in zip(got, messages, strict=True):
        assert (found.kind, found.launch, found.fields) == (wanted.kind, wanted.launch, wanted.fields)
        assert found.arrays.keys() == wanted.arrays.keys()
        for name, array in wanted.arrays.items():
            np.testing.assert_array_equal(found.arrays[name], array)
            assert (found.arrays[name].shape, found.arrays[name].dtype) == (array.shape, array.dtype)


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_noise_is_named_or_waited_for_and_raises_nothing(pieces: list[bytes]) -> None:
    decoder = Decoder()
    for piece in pieces:
        for message in decoder.feed(piece):
            assert isinstance(message.kind, str)


@given(MESSAGES, st.data())
def test_a_frame_with_changed_bytes_is_a_message_or_named_as_none(message: Message, data: st.DataObject) -> None:
    stream = bytearray(encode(message))
    for place in data.draw(st.lists(st.integers(0, len(stream) - 1), min_size=1, max_size=4)):
        stream[place] = data.draw(st.integers(0, 255))
    decoder = Decoder()
    for found in decoder.feed(bytes(stream)):
        for name in ("done", "total", "job", "phase"):
            for read in (found.number, found.text):
                with suppress(GarbledMessage):
                    read(name)


@given(MESSAGES, st.data())
def test_half_a_frame_is_waited_for(message: Message, data: st.DataObject) -> None:
    stream = encode(message)
    decoder = Decoder()
    assert decoder.feed(stream[: data.draw(st.integers(0, len(stream) - 1))]) == []
    assert decoder.garbled == ""


@pytest.mark.parametrize(
    "bad",
    [
        b"not json",
        b"\xff\xfe",
        b"",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 5000,
        [],
        "text",
        None,
        {},
        header(kind=3),
        header(kind=["l"] * 9),
        header(launch=None),
        header(fields=[["a", 1]]),
        header(fields=None),
        header(arrays=[]),
        header(arrays={"a": "f1"}),
        header(arrays={"a": []}),
        header(arrays={"a": None}),
        header(arrays={"a": {"f": 1}}),
        header(arrays={"a": ["O", 1]}),
        header(arrays={"a": [["f"], 1]}),
        header(arrays={"a": ["f", -1]}),
        header(arrays={"a": ["f", -1, -8]}),
        header(arrays={"a": ["f", True]}),
        header(arrays={"a": ["f", 1.0]}),
        header(arrays={"a": ["f", "1"]}),
        header(arrays={"a": ["f", 10**30]}),
        header(arrays={"a": ["f", 0, 10**30]}),
        header(arrays={"a": ["f", 0, *[2**28] * 7]}),
        header(arrays={"a": ["f", *[2] * 100_000]}),
        header(arrays={"a": ["f", 2**27, 2**27]}),
    ],
    ids=lambda bad: str(bad)[:40],
)
def test_a_header_that_is_none_is_named_and_nothing_after_it_is_a_message(bad: object) -> None:
    decoder = Decoder()
    assert decoder.feed(frame(bad) + encode(Message("ready", "l"))) == []
    assert decoder.garbled
    assert len(decoder.garbled) <= 200
    assert decoder.feed(encode(Message("ready", "l"))) == []


@pytest.mark.parametrize("sides", [[1], [], [2]])
def test_a_body_of_another_length_than_its_arrays_is_none(sides: list[int]) -> None:
    decoder = Decoder()
    decoder.feed(frame(header(arrays={"a": ["f", *sides]}), bytes(24)))
    assert decoder.garbled


@pytest.mark.parametrize("sizes", [(MAX_HEADER + 1, 0), (0, MAX_BODY + 1), (2**32 - 1, 2**32 - 1)])
def test_a_frame_beyond_the_bounds_is_refused_before_it_is_read(sizes: tuple[int, int]) -> None:
    decoder = Decoder()
    decoder.feed(struct.pack("<II", *sizes))
    assert "bytes" in decoder.garbled


def test_a_message_for_which_there_is_no_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", none)
    decoder, data = Decoder(), frame(header(arrays={"a": ["f", 3]}), bytes(24))
    assert decoder.feed(data) == []
    assert "no memory" in decoder.garbled


def test_garbage_without_end_takes_no_memory() -> None:
    decoder, piece = Decoder(), b"no message at all " * 1000
    decoder.feed(piece)
    tracemalloc.start()
    for _ in range(500):
        decoder.feed(piece)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20 * len(piece)


@pytest.mark.parametrize("value", [None, True, "1", [], {}, 10**400, -(10**400), float("inf"), float("nan"), [[[[]]]]])
def test_a_number_that_is_none_is_named(value: object) -> None:
    decoder = Decoder()
    (message,) = decoder.feed(frame(header(fields={"done": value})))
    with pytest.raises(GarbledMessage, match="done"):
        message.number("done")


def test_a_text_can_be_printed_whatever_was_sent() -> None:
    (message,) = Decoder().feed(
        frame(b'{"kind": "error", "launch": "l", "fields": {"message": "\\ud800!"}, "arrays": {}}')
    )
    assert printable(message.text("message") + "\x1b[31m\n") == "?!?[31m?"
    assert message.text("absent") == ""


def nested(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


def test_a_value_nested_as_deep_as_the_parser_allows_breaks_nothing_when_it_is_read() -> None:
    for depth in range(700, 1100, 7):
        decoder = Decoder()
        head = b'{"kind":"progress","launch":"l","fields":{"done":' + b"[" * depth + b"]" * depth + b'},"arrays":{}}'
        for message in decoder.feed(frame(head)):
            with pytest.raises(GarbledMessage):
                message.number("done")


INPUTS = ModelInput(1000, 10, np.zeros(4), np.zeros((4, 1)), np.zeros((6, 1)))
LEVELS = (0.1, 0.5, 0.9)
FORECAST = Forecast(1000, 10, LEVELS, np.tile([-0.1, 0.0, 0.1], (2, 1)), 0.0, INPUTS.sha256(), "b" * 64)


def read_answer(**changes: Any) -> object:
    message = forecast_message(FORECAST, "l", "j")
    quantiles = changes.pop("quantiles", None)
    if quantiles is not None:
        message.arrays["quantiles"] = quantiles
    for name, value in changes.items():
        message.fields[name] = value
    (got,) = Decoder().feed(encode(message))
    return predict_job(INPUTS, name="f", deadline=0, attempts=1, rows=2, levels=LEVELS).read(got)


def test_an_answer_becomes_the_forecast_again() -> None:
    found = read_answer()
    assert isinstance(found, Forecast)
    np.testing.assert_array_equal(found.quantiles, FORECAST.quantiles)
    assert (found.end, found.step, found.levels, found.value) == (1000, 10, LEVELS, 0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantiles": np.zeros((1, 3))},
        {"quantiles": np.zeros((2, 4))},
        {"quantiles": np.zeros(6)},
        {"quantiles": np.zeros((2, 3), dtype=np.int64)},
        {"quantiles": np.full((2, 3), np.nan)},
        {"quantiles": np.full((2, 3), np.inf)},
        {"value": None},
        {"value": "0.1"},
        {"value": 10**400},
        {"value": float("nan")},
        {"levels": [0.1, 0.5]},
        {"levels": [0.1, 0.5, 10**400]},
        {"levels": None},
        {"levels": [[]]},
        {"levels": {"a": 1}},
        {"end": 999},
        {"end": None},
        {"end": 10**400},
        {"step": 11},
        {"input_sha256": "another"},
        {"input_sha256": 7},
        {"bundle_sha256": []},
    ],
    ids=lambda changes: f"{next(iter(changes))}",
)
def test_an_answer_that_is_not_what_was_asked_for_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadAnswer):
        read_answer(**changes)


@given(noise=st.binary(min_size=8, max_size=200))
def test_garbage_to_the_child_is_told_and_never_trusted(noise: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(noise)
        with pytest.raises((GarbledMessage, ChannelClosed)):
            receive(theirs)


def test_a_large_message_to_the_child_is_put_together() -> None:
    ours, theirs = socket.socketpair()
    big = np.arange(200_000, dtype=np.float64)
    with ours, theirs:
        sender = threading.Thread(target=send, args=(ours, Message("result", "l", {}, {"a": big})))
        sender.start()
        got = receive(theirs)
        sender.join()
    np.testing.assert_array_equal(got.arrays["a"], big)


def test_writing_to_a_child_that_is_gone_is_told() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(ChannelClosed):
        send(ours, Message("stop", "l"))
