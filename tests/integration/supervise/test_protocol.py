"""Messages over a real socketpair, as the child reads and writes them."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.supervise.protocol import ChannelClosed, ChildMessage, InvalidMessage, receive, send


@given(noise=st.binary(min_size=8, max_size=200))
def test_child_rejects_garbage(noise: bytes) -> None:
    parent_end, child_end = socket.socketpair()
    with child_end:
        with parent_end:
            parent_end.sendall(noise)
        with pytest.raises((InvalidMessage, ChannelClosed)):
            receive(child_end)


def test_large_message_is_received_whole() -> None:
    parent_end, child_end = socket.socketpair()
    big = np.arange(200_000, dtype=np.float64)
    with parent_end, child_end:
        sender = threading.Thread(target=send, args=(parent_end, ChildMessage("result", "l", {}, {"a": big})))
        sender.start()
        received = receive(child_end)
        sender.join()
    np.testing.assert_array_equal(received.arrays["a"], big)


def test_send_to_closed_channel_raises() -> None:
    parent_end, child_end = socket.socketpair()
    child_end.close()
    with parent_end, pytest.raises(ChannelClosed):
        send(parent_end, ChildMessage("stop", "l"))
