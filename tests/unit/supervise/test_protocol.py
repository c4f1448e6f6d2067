"""The decoder turns any bytes of a child into messages or into one error, and never raises."""

from __future__ import annotations

import json
import struct
import tracemalloc
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forecastd.supervise.protocol import (
    MAX_BODY,
    MAX_HEADER,
    ChildMessage,
    InvalidMessage,
    MessageDecoder,
    encode,
    printable,
)

ARRAYS = st.one_of(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    hnp.arrays(np.int64, hnp.array_shapes(max_dims=2, max_side=5)),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    hnp.arrays(np.uint8, hnp.array_shapes(max_dims=2, max_side=5)),
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.builds(
    ChildMessage,
    kind=st.text(max_size=10),
    launch_id=st.text(max_size=10),
    fields=st.dictionaries(st.text(max_size=6), JSON_VALUES, max_size=4),
    arrays=st.dictionaries(st.text(max_size=6), ARRAYS, max_size=3),
)


def frame(header: object, body: bytes = b"") -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<II", len(head), len(body)) + head + body


def header(**other: Any) -> dict[str, Any]:
    return {"kind": "result", "launch": "l", "fields": {}, "arrays": {}, **other}


@given(st.lists(MESSAGES, max_size=4), st.lists(st.integers(0, 4000), max_size=8))
def test_decoder_restores_messages_from_any_chunks(messages: list[ChildMessage], cuts: list[int]) -> None:
    stream = b"".join(encode(message) for message in messages)
    positions = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    decoder = MessageDecoder()
    decoded = [message for begin, end in pairwise(positions) for message in decoder.feed(stream[begin:end])]
    assert decoder.error == ""
    assert len(decoded) == len(messages)
    for actual, expected in zip(decoded, messages, strict=True):
        assert (actual.kind, actual.launch_id, actual.fields) == (expected.kind, expected.launch_id, expected.fields)
        assert actual.arrays.keys() == expected.arrays.keys()
        for name, array in expected.arrays.items():
            np.testing.assert_array_equal(actual.arrays[name], array)
            assert (actual.arrays[name].shape, actual.arrays[name].dtype) == (array.shape, array.dtype)


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_decoder_never_raises_on_noise(pieces: list[bytes]) -> None:
    decoder = MessageDecoder()
    for piece in pieces:
        for message in decoder.feed(piece):
            assert isinstance(message.kind, str)


@given(MESSAGES, st.data())
def test_decoder_handles_corrupted_frames(message: ChildMessage, data: st.DataObject) -> None:
    stream = bytearray(encode(message))
    for position in data.draw(st.lists(st.integers(0, len(stream) - 1), min_size=1, max_size=4)):
        stream[position] = data.draw(st.integers(0, 255))
    decoder = MessageDecoder()
    for decoded in decoder.feed(bytes(stream)):
        for name in ("done", "total", "job", "phase"):
            for read in (decoded.number, decoded.text):
                with suppress(InvalidMessage):
                    read(name)


@given(MESSAGES, st.data())
def test_decoder_waits_for_rest_of_frame(message: ChildMessage, data: st.DataObject) -> None:
    stream = encode(message)
    decoder = MessageDecoder()
    assert decoder.feed(stream[: data.draw(st.integers(0, len(stream) - 1))]) == []
    assert decoder.error == ""


@pytest.mark.parametrize(
    "invalid",
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
    ids=lambda invalid: str(invalid)[:40],
)
def test_invalid_header_is_reported_and_stops_decoding(invalid: object) -> None:
    decoder = MessageDecoder()
    assert decoder.feed(frame(invalid) + encode(ChildMessage("ready", "l"))) == []
    assert decoder.error
    assert len(decoder.error) <= 200
    assert decoder.feed(encode(ChildMessage("ready", "l"))) == []


@pytest.mark.parametrize("shape", [[1], [], [2]])
def test_body_length_mismatch_is_invalid(shape: list[int]) -> None:
    decoder = MessageDecoder()
    decoder.feed(frame(header(arrays={"a": ["f", *shape]}), bytes(24)))
    assert decoder.error


@pytest.mark.parametrize("sizes", [(MAX_HEADER + 1, 0), (0, MAX_BODY + 1), (2**32 - 1, 2**32 - 1)])
def test_oversized_frame_is_refused_before_reading(sizes: tuple[int, int]) -> None:
    decoder = MessageDecoder()
    decoder.feed(struct.pack("<II", *sizes))
    assert "bytes" in decoder.error


def test_message_without_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_memory_error(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", raise_memory_error)
    decoder, data = MessageDecoder(), frame(header(arrays={"a": ["f", 3]}), bytes(24))
    assert decoder.feed(data) == []
    assert "not enough memory" in decoder.error


def test_endless_garbage_uses_no_memory() -> None:
    decoder, piece = MessageDecoder(), b"no message at all " * 1000
    decoder.feed(piece)
    tracemalloc.start()
    for _ in range(500):
        decoder.feed(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * len(piece)


@pytest.mark.parametrize("value", [None, True, "1", [], {}, 10**400, -(10**400), float("inf"), float("nan"), [[[[]]]]])
def test_invalid_number_field_is_reported(value: object) -> None:
    decoder = MessageDecoder()
    (message,) = decoder.feed(frame(header(fields={"done": value})))
    with pytest.raises(InvalidMessage, match="done"):
        message.number("done")


def test_text_is_made_printable() -> None:
    (message,) = MessageDecoder().feed(
        frame(b'{"kind": "error", "launch": "l", "fields": {"message": "\\ud800!"}, "arrays": {}}')
    )
    assert printable(message.text("message") + "\x1b[31m\n") == "?!?[31m?"
    assert message.text("absent") == ""


def test_deeply_nested_value_is_rejected_safely() -> None:
    for depth in range(700, 1100, 7):
        decoder = MessageDecoder()
        head = b'{"kind":"progress","launch":"l","fields":{"done":' + b"[" * depth + b"]" * depth + b'},"arrays":{}}'
        for message in decoder.feed(frame(head)):
            with pytest.raises(InvalidMessage):
                message.number("done")
