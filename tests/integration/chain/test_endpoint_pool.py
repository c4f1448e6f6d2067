"""A pool of endpoints over real sockets: working nodes, and everything that can be in their place."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from forecastd.chain.codec import TxParameters, build_tx, payload_message, tx_hash
from forecastd.chain.endpoint_health import HEIGHT_MAX_AGE_SECONDS, MAX_REST_SECONDS, EndpointState
from forecastd.chain.endpoint_pool import EndpointPool
from forecastd.chain.node import Node
from forecastd.chain.request_pool import IDLE_SECONDS
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.localnet.chain import LocalChain
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from forecastd.testing import ManualClock
from tests.support.waiting import wait_until

CHAIN = "localnet"
HEDGE_SECONDS = 0.3  # seconds; the tests wait this long for a hanging endpoint
LONG_SECONDS = 60.0  # seconds, where no endpoint hangs: a working node on a busy machine must not count as slow


class Proxy:
    """A port in front of a node, or of nothing. `mode`: pass, shut (refused), silent, reset, page, garbage.

    It keeps the port while it refuses, so that no other process gets it.
    """

    def __init__(self, target: int | None = None, mode: str = "pass") -> None:
        self.mode = mode
        self.connection_count = 0
        self.delay = 0.0
        self._target = target
        self._sockets: list[socket.socket] = []
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._server = _bind(0)
        self.port: int = self._server.getsockname()[1]
        if mode != "shut":
            self._listen()

    @property
    def endpoint(self) -> str:
        return f"grpc+http://127.0.0.1:{self.port}"

    def refuse(self) -> None:
        """Refuse new connections and drop the existing ones."""
        self.mode = "shut"
        self._stop_listening()
        self._server = _bind(self.port)
        self.drop_connections()

    def open(self, mode: str = "pass") -> None:
        """Listen again on the same port."""
        self.mode = mode
        self._listen()

    def drop_connections(self) -> None:
        """Drop the existing connections."""
        for sock in self._sockets[:]:
            _close_socket(sock)
        self._sockets.clear()

    def close(self) -> None:
        self._closed.set()
        self.mode = "shut"
        self._stop_listening()
        self.drop_connections()

    def _listen(self) -> None:
        self._server.listen()
        self._thread = threading.Thread(target=self._accept, args=(self._server,), daemon=True)
        self._thread.start()

    def _stop_listening(self) -> None:
        _close_socket(self._server)
        if self._thread is not None:
            self._thread.join()  # after this, no client is accepted

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                caller, _ = server.accept()
            except OSError:
                return
            self.connection_count += 1
            self._sockets.append(caller)
            if self.mode == "pass" and self._target is not None:
                threading.Thread(target=self._relay, args=(caller, self._target), daemon=True).start()
            elif self.mode == "reset":
                _close_socket(caller)
            elif self.mode in ("page", "garbage"):
                page = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"
                with suppress(OSError):
                    caller.sendall(page if self.mode == "page" else b"\xff" * 500)

    def _relay(self, caller: socket.socket, target: int) -> None:
        if self._closed.wait(self.delay):
            return
        with suppress(OSError):
            node = socket.create_connection(("127.0.0.1", target))
            self._sockets.append(node)
            threading.Thread(target=self._copy, args=(node, caller), daemon=True).start()
            self._copy(caller, node)

    def _copy(self, source: socket.socket, destination: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if self.mode == "silent":  # no data passes from now on
                    self._closed.wait()
                destination.sendall(data)
        _close_socket(source)
        _close_socket(destination)


def _bind(port: int) -> socket.socket:
    """A socket that holds a port (0: a free one) without listening: connections are refused."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def _close_socket(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def start_node(stack: ExitStack, clock: ManualClock, tmp_path: Path) -> Callable[..., EmbeddedNode]:
    """Starts a local node that makes blocks on demand, `height` of them at first."""

    def begin(name: str = "a", height: int = 1, chain_id: str = CHAIN, version: str = "v10") -> EmbeddedNode:
        node = stack.enter_context(
            open_embedded(
                tmp_path / name, clock, chain_id=chain_id, version=version,  # type: ignore[arg-type]  # v9 or v10
                block_time=None, seal_at_once=False,
            )
        )  # fmt: skip
        node.call(lambda chain: chain.advance(height - chain.state.height))
        return node

    return begin


@pytest.fixture
def open_proxy(stack: ExitStack) -> Callable[..., Proxy]:
    """Opens a proxy in front of a node, or of nothing."""

    def begin(node: EmbeddedNode | None = None, mode: str = "pass") -> Proxy:
        proxy = Proxy(int(node.endpoint.rpartition(":")[2]) if node is not None else None, mode)
        stack.callback(proxy.close)
        return proxy

    return begin


@pytest.fixture
def open_pool(stack: ExitStack, clock: ManualClock) -> Callable[..., EndpointPool]:
    """Opens a pool of endpoints on the chain of the local nodes."""

    def begin(
        *endpoints: str, hedge_seconds: float = LONG_SECONDS, timeout_seconds: float = 2 * LONG_SECONDS
    ) -> EndpointPool:
        return stack.enter_context(
            EndpointPool(
                endpoints, chain_id=CHAIN, clock=clock, hedge_seconds=hedge_seconds, timeout_seconds=timeout_seconds
            )
        )

    return begin


def _states(endpoints: EndpointPool) -> list[EndpointState]:
    return [report.state for report in endpoints.report()]


def _payload(node: EmbeddedNode, wallet: Wallet, memo_gas: int = 400_000) -> bytes:
    """A signed transaction that the node accepts."""
    account = node.call(lambda chain: chain.account(wallet.address))
    assert account is not None
    nonce = node.call(lambda chain: chain.state.topics[0].open_nonces(chain.state.height)[0])
    message = payload_message(wallet, version="v10", topic_id=67, nonce=nonce, value="0.01")
    return build_tx(
        wallet, message, TxParameters(account.number, account.sequence, memo_gas, 10**9), chain_id=CHAIN,
        timeout_height=nonce + 719,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["shut", "silent", "reset", "page", "garbage"])
def test_pool_one_healthy_endpoint_is_enough(
    start_node: Callable[..., EmbeddedNode],
    open_proxy: Callable[..., Proxy],
    open_pool: Callable[..., EndpointPool],
    wallet: Wallet,
    mode: str,
) -> None:
    node = start_node()
    bad = [open_proxy(mode=mode).endpoint for _ in range(2)]
    endpoints = open_pool(*bad, node.endpoint, hedge_seconds=HEDGE_SECONDS if mode == "silent" else LONG_SECONDS)
    raw = _payload(node, wallet)
    assert endpoints.height() == 1
    assert endpoints.chain_id() == CHAIN
    assert endpoints.version() == "v10"
    assert endpoints.account(wallet.address) is not None
    assert endpoints.broadcast(raw).code == 0
    assert endpoints.find_tx(tx_hash(raw)) is None
    assert endpoints.look_up(tx_hash(raw)).absent_heights == (1,)
    node.call(LocalChain.seal)
    result = endpoints.look_up(tx_hash(raw)).result
    assert result is not None
    assert result.height == 2
    assert endpoints.find_tx(tx_hash(raw)) == result
    assert _states(endpoints)[2] is EndpointState.OK
    assert EndpointState.OK not in _states(endpoints)[:2]


def test_pool_hanging_endpoint_costs_one_hedge_delay(
    start_node: Callable[..., EmbeddedNode], open_proxy: Callable[..., Proxy], open_pool: Callable[..., EndpointPool]
) -> None:
    hung = open_proxy(mode="silent")
    node = start_node()
    with Node(node.endpoint) as first:
        assert first.height() == 1  # loads everything that the first answer needs
    # Waiting for the rest of the answer would take an hour.
    endpoints = open_pool(hung.endpoint, node.endpoint, hedge_seconds=2.0, timeout_seconds=3600.0)
    assert [endpoints.height() for _ in range(5)] == [1] * 5
    report = endpoints.report()[0]
    assert (report.state, report.streak) == (EndpointState.QUARANTINED, 1)
    assert "no answer within" in report.error
    assert hung.connection_count == 1


def test_pool_endpoint_silent_during_a_call_is_replaced(
    start_node: Callable[..., EmbeddedNode], open_proxy: Callable[..., Proxy], open_pool: Callable[..., EndpointPool]
) -> None:
    node = start_node()
    first = open_proxy(node)
    endpoints = open_pool(first.endpoint, node.endpoint, hedge_seconds=HEDGE_SECONDS, timeout_seconds=3600.0)
    assert endpoints.is_topic_active(67)
    first.mode = "silent"
    assert endpoints.is_topic_active(67)
    assert _states(endpoints) == [EndpointState.QUARANTINED, EndpointState.OK]


def test_pool_failed_endpoint_is_replaced_and_restored(
    start_node: Callable[..., EmbeddedNode],
    open_proxy: Callable[..., Proxy],
    open_pool: Callable[..., EndpointPool],
    clock: ManualClock,
) -> None:
    node = start_node()
    first = open_proxy(node)
    endpoints = open_pool(first.endpoint, node.endpoint)
    assert endpoints.open_nonces(67) == [1]
    first.refuse()
    assert endpoints.open_nonces(67) == [1]
    assert _states(endpoints) == [EndpointState.QUARANTINED, EndpointState.OK]
    first.open()
    assert endpoints.open_nonces(67) == [1]
    assert _states(endpoints)[0] is EndpointState.QUARANTINED  # its rest is not over
    for _ in range(100):  # grpcio needs a moment to reconnect; the clock decides when the endpoint is called
        clock.advance(MAX_REST_SECONDS)
        endpoints.open_nonces(67)
        endpoints.inspect()
        if _states(endpoints)[0] is EndpointState.OK:
            break
    assert _states(endpoints) == [EndpointState.OK, EndpointState.OK]


def test_pool_all_down_error_names_each_cause(
    start_node: Callable[..., EmbeddedNode], open_proxy: Callable[..., Proxy], open_pool: Callable[..., EndpointPool]
) -> None:
    node = start_node()
    proxies = [open_proxy(node) for _ in range(3)]
    endpoints = open_pool(*(proxy.endpoint for proxy in proxies))
    assert endpoints.height() == 1
    for proxy in proxies:
        proxy.refuse()
    for _ in range(3):  # when all are resting, one of them is called anyway
        with pytest.raises(RetryLater, match="No endpoint gave a usable answer") as caught:
            endpoints.height()
        for proxy in proxies:
            assert f"127.0.0.1:{proxy.port}: " in str(caught.value)
    assert len(str(caught.value)) < 1000
    lookup = endpoints.look_up("AB" * 32)
    assert (lookup.result, lookup.absent_heights) == (None, ())
    with pytest.raises(RetryLater):
        endpoints.find_tx("AB" * 32)
    with pytest.raises(RetryLater):
        endpoints.broadcast(b"bytes")
    assert [proxy.result for proxy in endpoints.broadcast_all(b"bytes")] == [None] * 3
    proxies[1].open()
    height = None
    for _ in range(600):
        with suppress(RetryLater):  # grpcio pauses before it reconnects
            height = endpoints.height()
            break
        threading.Event().wait(0.1)
    assert height == 1


def test_pool_wrong_chain_endpoint_gets_no_transaction(
    start_node: Callable[..., EmbeddedNode], open_pool: Callable[..., EndpointPool], wallet: Wallet
) -> None:
    foreign_node, node = start_node("other", chain_id="localnet-2"), start_node()
    endpoints = open_pool(foreign_node.endpoint, node.endpoint)
    raw = _payload(node, wallet)
    assert endpoints.height() == 1
    report = endpoints.report()[0]
    assert (report.state, report.chain_id) == (EndpointState.WRONG_CHAIN, "localnet-2")
    assert endpoints.size == 1
    assert [broadcast.endpoint for broadcast in endpoints.broadcast_all(raw)] == [str(Node(node.endpoint).endpoint)]
    assert endpoints.look_up(tx_hash(raw)).reply_count == 1
    assert foreign_node.call(lambda chain: chain.pending_count) == 0


def test_pool_all_on_wrong_chain_needs_human(
    start_node: Callable[..., EmbeddedNode], open_pool: Callable[..., EndpointPool]
) -> None:
    endpoints = open_pool(
        start_node("b", chain_id="localnet-2").endpoint, start_node("c", chain_id="localnet-3").endpoint
    )
    for _ in range(2):
        with pytest.raises(NeedsHuman, match=r"is on chain localnet-\d"):
            endpoints.height()


def test_pool_lagging_endpoint_is_not_read(
    start_node: Callable[..., EmbeddedNode], open_pool: Callable[..., EndpointPool]
) -> None:
    endpoints = open_pool(start_node("old", height=1000).endpoint, start_node("new", height=1500).endpoint)
    assert endpoints.height() == 1500
    assert endpoints.open_nonces(67) == [1441]
    assert _states(endpoints) == [EndpointState.BEHIND, EndpointState.OK]
    assert endpoints.report()[0].lag == 500
    # In a lookup it counts as: absent at its own height.
    assert sorted(endpoints.look_up("AB" * 32).absent_heights) == [1000, 1500]
    assert sorted(report.height or 0 for report in endpoints.inspect()) == [1000, 1500]


def test_pool_small_lag_is_tolerated(
    start_node: Callable[..., EmbeddedNode], open_pool: Callable[..., EndpointPool]
) -> None:
    endpoints = open_pool(start_node("old", height=995).endpoint, start_node("new", height=1000).endpoint)
    assert endpoints.height() == 995
    assert _states(endpoints) == [EndpointState.OK, EndpointState.OK]


def test_pool_frozen_endpoint_is_dropped_once_it_lags(
    start_node: Callable[..., EmbeddedNode], open_pool: Callable[..., EndpointPool], clock: ManualClock
) -> None:
    frozen, node = start_node("frozen", height=100), start_node("node", height=100)
    endpoints = open_pool(frozen.endpoint, node.endpoint)
    assert endpoints.height() == 100
    node.call(lambda chain: chain.advance(50))
    clock.advance(HEIGHT_MAX_AGE_SECONDS + 1)
    assert endpoints.height() == 150
    assert _states(endpoints) == [EndpointState.BEHIND, EndpointState.OK]
    frozen.call(lambda chain: chain.advance(48))
    clock.advance(HEIGHT_MAX_AGE_SECONDS + 1)
    assert endpoints.height() == 148
    assert _states(endpoints) == [EndpointState.OK, EndpointState.OK]


def test_pool_last_endpoint_is_read_after_the_leader_expires(
    start_node: Callable[..., EmbeddedNode],
    open_proxy: Callable[..., Proxy],
    open_pool: Callable[..., EndpointPool],
    clock: ManualClock,
) -> None:
    ahead = open_proxy(start_node("ahead", height=5000))
    endpoints = open_pool(ahead.endpoint, start_node("left", height=1000).endpoint)
    assert endpoints.height() == 5000
    ahead.refuse()
    with pytest.raises(RetryLater, match="4000 blocks behind"):
        endpoints.height()
    clock.advance(700)
    assert endpoints.height() == 1000


@pytest.fixture
def wait_for_all_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a broadcast wait for the answers of all endpoints, even on a busy machine."""
    monkeypatch.setattr("forecastd.chain.endpoint_pool.GRACE_SECONDS", LONG_SECONDS)


def test_broadcast_sends_to_all_and_one_acceptance_is_enough(
    start_node: Callable[..., EmbeddedNode],
    open_pool: Callable[..., EndpointPool],
    wallet: Wallet,
    wait_for_all_replies: None,
) -> None:
    first, second = start_node("a"), start_node("b")
    endpoints = open_pool(first.endpoint, second.endpoint)
    raw = _payload(first, wallet)
    reports = endpoints.broadcast_all(raw)
    assert [report.accepted for report in reports] == [True, True]
    assert [node.call(lambda chain: chain.pending_count) for node in (first, second)] == [1, 1]
    second_reports = endpoints.broadcast_all(raw)
    assert [(report.result.codespace, report.result.code) for report in second_reports if report.result] == [
        ("sdk", 19)
    ] * 2
    assert [report.accepted for report in second_reports] == [True, True]


def test_broadcast_acceptance_outweighs_refusal(
    start_node: Callable[..., EmbeddedNode],
    open_pool: Callable[..., EndpointPool],
    wallet: Wallet,
    wait_for_all_replies: None,
) -> None:
    full, node = start_node("full"), start_node("node")
    full.call(lambda chain: chain.configure(replace(chain.config, mempool_size=0)))
    endpoints = open_pool(full.endpoint, node.endpoint)
    raw = _payload(node, wallet)
    assert endpoints.broadcast(raw).code == 0
    reports = endpoints.broadcast_all(raw)
    assert [(report.result.codespace, report.result.code) for report in reports if report.result] == [
        ("sdk", 20),
        ("sdk", 19),
    ]
    assert endpoints.broadcast(raw).code == 19


def test_broadcast_does_not_wait_for_a_hanging_endpoint(
    start_node: Callable[..., EmbeddedNode],
    open_proxy: Callable[..., Proxy],
    open_pool: Callable[..., EndpointPool],
    wallet: Wallet,
) -> None:
    node = start_node()
    endpoints = open_pool(open_proxy(mode="silent").endpoint, node.endpoint, timeout_seconds=3600.0)
    reports = endpoints.broadcast_all(_payload(node, wallet))
    assert [report.accepted for report in reports] == [False, True]
    assert reports[0].error == "no answer yet"


def test_pool_follows_a_chain_upgrade_on_every_endpoint(
    start_node: Callable[..., EmbeddedNode], open_pool: Callable[..., EndpointPool], clock: ManualClock
) -> None:
    nodes = [start_node(name, version="v9") for name in ("a", "b")]
    endpoints = open_pool(*(node.endpoint for node in nodes))
    assert endpoints.version() == "v9"
    assert endpoints.topic(67) is not None
    for node in nodes:
        node.call(lambda chain: chain.configure(replace(chain.config, version="v10")))
    assert endpoints.version() == "v10"
    assert endpoints.open_nonces(67) == [1]
    assert endpoints.latest_inference(67, "allo1nobody") is None
    clock.advance(HEIGHT_MAX_AGE_SECONDS + 1)
    assert endpoints.is_topic_active(67)
    assert _states(endpoints) == [EndpointState.OK, EndpointState.OK]


def test_pool_refused_query_keeps_the_endpoint(
    start_node: Callable[..., EmbeddedNode], open_pool: Callable[..., EndpointPool]
) -> None:
    endpoints = open_pool(start_node("a").endpoint, start_node("b").endpoint)
    with pytest.raises(RetryLater, match="topic 99 not found"):
        endpoints.is_topic_active(99)
    assert _states(endpoints) == [EndpointState.OK, EndpointState.OK]


def test_pool_slow_connection_is_used(
    start_node: Callable[..., EmbeddedNode], open_proxy: Callable[..., Proxy], stack: ExitStack
) -> None:
    far = open_proxy(start_node())
    far.delay = 0.7  # like a TLS handshake over a long distance
    node = stack.enter_context(Node(far.endpoint, chain_id=CHAIN, deadline=LONG_SECONDS))
    assert node.height() == 1


def test_pool_shared_by_many_threads_works(
    start_node: Callable[..., EmbeddedNode], open_proxy: Callable[..., Proxy], open_pool: Callable[..., EndpointPool]
) -> None:
    node = start_node()
    endpoints = open_pool(open_proxy(mode="shut").endpoint, node.endpoint)
    heights: list[int] = []
    threads = [threading.Thread(target=lambda: heights.append(endpoints.height())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heights == [1] * 8


def test_pool_idle_connection_is_closed_and_opened_again(
    start_node: Callable[..., EmbeddedNode],
    open_proxy: Callable[..., Proxy],
    open_pool: Callable[..., EndpointPool],
    clock: ManualClock,
) -> None:
    proxy = open_proxy(start_node())
    endpoints = open_pool(proxy.endpoint)
    assert endpoints.height() == 1
    clock.advance(IDLE_SECONDS - 1)
    endpoints.close_idle()  # not idle for long enough
    assert endpoints.height() == 1
    assert proxy.connection_count == 1
    clock.advance(IDLE_SECONDS)
    endpoints.close_idle()
    assert endpoints.height() == 1
    assert proxy.connection_count == 2
    assert _states(endpoints) == [EndpointState.OK]


def test_pool_connection_with_a_call_in_progress_is_not_idle(
    start_node: Callable[..., EmbeddedNode],
    open_proxy: Callable[..., Proxy],
    open_pool: Callable[..., EndpointPool],
    clock: ManualClock,
) -> None:
    proxy = open_proxy(start_node())
    endpoints = open_pool(proxy.endpoint)
    assert endpoints.height() == 1
    proxy.drop_connections()
    proxy.delay = 0.5  # seconds until the next connection is passed on
    with ThreadPoolExecutor() as executor:
        call = executor.submit(endpoints.height)
        wait_until(lambda: proxy.connection_count >= 2)
        clock.advance(IDLE_SECONDS)
        endpoints.close_idle()
        assert call.result(LONG_SECONDS) == 1


def test_pool_close_ends_threads_and_calls(
    start_node: Callable[..., EmbeddedNode], open_proxy: Callable[..., Proxy], open_pool: Callable[..., EndpointPool]
) -> None:
    endpoints = open_pool(open_proxy(mode="silent").endpoint, start_node().endpoint, hedge_seconds=0.05)
    assert endpoints.height() == 1
    endpoints.close()
    for _ in range(1200):
        left = [thread for thread in threading.enumerate() if thread.name.startswith("endpoint")]
        if not left:
            break
        threading.Event().wait(0.05)
    assert left == []
    with pytest.raises(RetryLater):
        endpoints.height()


class FrozenMonotonicClock(SystemClock):
    """A clock for which all endpoints answer equally fast, even on a busy machine."""

    def monotonic(self) -> float:
        return 1000.0


def test_pool_equal_endpoints_keep_the_users_order(
    start_node: Callable[..., EmbeddedNode], open_proxy: Callable[..., Proxy], stack: ExitStack
) -> None:
    node = start_node()
    first, second = open_proxy(node), open_proxy(node)
    endpoints = stack.enter_context(
        EndpointPool(
            [first.endpoint, second.endpoint],
            chain_id=CHAIN,
            clock=FrozenMonotonicClock(),
            hedge_seconds=LONG_SECONDS,
            timeout_seconds=2 * LONG_SECONDS,
        )
    )
    assert [report.height for report in endpoints.inspect()] == [1, 1]  # both have answered, no call is in progress
    second.refuse()
    assert [endpoints.is_topic_active(67) for _ in range(5)] == [True] * 5
    assert _states(endpoints) == [EndpointState.OK, EndpointState.OK]  # not noticed: the second endpoint was not needed


def test_pool_invalid_endpoint_is_named_by_position() -> None:
    with pytest.raises(NeedsHuman, match=r"Item 2 of RPC_ENDPOINTS"):
        EndpointPool(["127.0.0.1:9090", "what is this"], chain_id=CHAIN, clock=SystemClock())


def test_pool_duplicate_endpoints_are_merged(
    start_node: Callable[..., EmbeddedNode], open_pool: Callable[..., EndpointPool]
) -> None:
    node = start_node()
    endpoints = open_pool(node.endpoint, node.endpoint, node.endpoint.removeprefix("grpc+http://"))
    assert len(endpoints.report()) == 1
    assert len(endpoints.warnings) == 2
    assert endpoints.height() == 1
