"""A node over REST: the same answers as over gRPC, and errors in time for everything else a web server may send."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forecastd.chain.client import ChainClient
from forecastd.chain.codec import TxParameters, build_tx, payload_message, register_message, tx_hash
from forecastd.chain.endpoint_health import EndpointState
from forecastd.chain.endpoint_pool import EndpointPool
from forecastd.chain.node import Node, WrongChain
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.errors import ForecastdError, RetryLater
from forecastd.localnet.chain import LocalChain
from forecastd.localnet.embedded import EmbeddedNode, open_embedded

CHAIN = "localnet"
CHUNK_BYTES = 2**20  # bytes that a scripted server sends at once


class ScriptedServer:
    """A server that answers every connection with `behavior`, which gets the socket and an event that ends it."""

    def __init__(self, behavior: Callable[[socket.socket, threading.Event], None]) -> None:
        self._behavior = behavior
        self._end = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._server.getsockname()[1]}/some/path"
        self.requests: list[bytes] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._end.set()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._server.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(caller,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, caller: socket.socket) -> None:
        with caller, suppress(OSError):
            self.requests.append(caller.recv(65_536))
            self._behavior(caller, self._end)


def _http(status: int, body: bytes, more: str = "") -> Callable[[socket.socket, threading.Event], None]:
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{more}\r\n".encode()
    return lambda caller, _: caller.sendall(head + body)


def _silent(caller: socket.socket, end: threading.Event) -> None:
    del caller
    end.wait()


def _dripping_body(caller: socket.socket, end: threading.Event) -> None:
    caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not end.wait(0.02):
        caller.sendall(b" ")


def _dripping_head(caller: socket.socket, end: threading.Event) -> None:
    caller.sendall(b"HTTP/1.1 200 OK\r\n")
    while not end.wait(0.02):
        caller.sendall(b"X-A: b\r\n"[:1])


def _endless(caller: socket.socket, end: threading.Event) -> None:
    caller.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{")
    while not end.is_set():
        caller.sendall(b" " * CHUNK_BYTES)


def _cut(caller: socket.socket, end: threading.Event) -> None:
    del end
    caller.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"default_node_info"')


def _not_http(caller: socket.socket, end: threading.Event) -> None:
    del end
    caller.sendall(b"\xff\x00\xff" * 100)


UNUSABLE_SERVERS: dict[str, tuple[Callable[[socket.socket, threading.Event], None], str]] = {
    "silence": (_silent, "did not answer in full within"),
    "a body that drips": (_dripping_body, "did not answer in full within"),
    "a head that drips": (_dripping_head, "did not answer in full within"),
    "a body without end": (_endless, "more than 4 MB"),
    "a body cut off": (_cut, "connection broke"),
    "bytes that are not HTTP": (_not_http, "connection broke"),
    "a web page": (_http(200, b"<html>Just a moment</html>"), "not JSON"),
    "a rate limit": (_http(429, b"slow down", "Retry-After: 1\r\n"), "429"),
    "a rate limit of the gateway": (_http(429, b'{"code": 8, "message": "too many"}'), "too many"),
    "a bad gateway": (_http(502, b"<html>bad gateway</html>"), "HTTP 502"),
    "half of an answer": (_http(200, b'{"default_node_info": {"netw'), "not JSON"),
    "nothing": (_http(200, b""), "not JSON"),
    "an empty object": (_http(200, b"{}"), "without a chain id"),
    "another shape": (_http(200, b'{"default_node_info": [1]}'), "unreadable"),
    "JSON without a bottom": (_http(200, b"[" * 100_000), "not JSON"),
    "a redirect": (_http(302, b"", "Location: http://127.0.0.1:1/\r\n"), "HTTP 302"),
    "a node that is down": (_http(503, b'{"code": 14, "message": "no upstream"}'), "no upstream"),
}


@pytest.fixture
def start_node(stack: ExitStack, tmp_path: Path) -> Callable[..., EmbeddedNode]:
    """Starts a local node that makes blocks on demand."""

    def begin(name: str = "a", **rules: Any) -> EmbeddedNode:
        return stack.enter_context(
            open_embedded(tmp_path / name, SystemClock(), block_time=None, seal_at_once=False, **rules)
        )

    return begin


@pytest.fixture
def scripted_server(stack: ExitStack) -> Callable[[Callable[[socket.socket, threading.Event], None]], ScriptedServer]:
    """Starts a scripted server."""

    def begin(behavior: Callable[[socket.socket, threading.Event], None]) -> ScriptedServer:
        server = ScriptedServer(behavior)
        stack.callback(server.close)
        return server

    return begin


def _send(node: EmbeddedNode, client: ChainClient, wallet: Wallet, message: tuple[str, bytes]) -> str:
    """Sign, simulate and send a message, and make a block. Returns the hash."""
    account = client.account(wallet.address)
    assert account is not None
    raw = build_tx(
        wallet, message, TxParameters(account.number, account.sequence, 400_000, 10**9), chain_id=CHAIN,
        timeout_height=client.height() + 10,
    )  # fmt: skip
    assert client.simulate(raw).gas_used is not None
    answer = client.broadcast(raw)
    assert (answer.code, answer.tx_hash) == (0, tx_hash(raw))
    node.call(LocalChain.seal)
    return tx_hash(raw)


def _all_answers(client: ChainClient, wallet: Wallet, hashes: list[str]) -> list[object]:
    """All answers of a client about a chain. A refusal counts as an answer."""
    asks: list[Callable[[], object]] = [
        client.chain_id, client.height, client.version, client.params, client.gas_price,
        *(lambda topic=topic: client.topic(topic) for topic in (67, 99)),
        lambda: client.is_topic_active(67), lambda: client.open_nonces(67), lambda: client.is_nonce_unfulfilled(67, 1),
        *(lambda who=who: client.is_registered(67, who) for who in (wallet.address, "allo1nobody")),
        lambda: client.can_submit(67, wallet.address), lambda: client.latest_inference(67, wallet.address),
        lambda: client.latest_inference(67, "allo1nobody"), lambda: client.inferences_at(67, 1),
        lambda: client.network_inferences(67), lambda: client.account(wallet.address), lambda: client.account("allo1x"),
        lambda: client.balance(wallet.address), lambda: client.balance("allo1x"),
        *(lambda name=name: client.find_tx(name) for name in (*hashes, "AB" * 32)),
        lambda: client.simulate(b"rubbish"), lambda: client.broadcast(b"rubbish"),
    ]  # fmt: skip
    return [ask() for ask in asks]


@pytest.mark.parametrize("version", ["v9", "v10"])
def test_rest_answers_equal_grpc_answers(
    start_node: Callable[..., EmbeddedNode], stack: ExitStack, wallet: Wallet, version: Any
) -> None:
    node = start_node(version=version)
    grpc = stack.enter_context(Node(node.endpoint, chain_id=CHAIN))
    rest = stack.enter_context(Node(node.add_endpoint(rest=True), chain_id=CHAIN))
    hashes = [_send(node, rest, wallet, register_message(wallet, version=version, topic_id=67))]
    message = payload_message(wallet, version=version, topic_id=67, nonce=1, value="0.0123")
    hashes.append(_send(node, rest, wallet, message))
    answers = _all_answers(rest, wallet, hashes)
    assert answers == _all_answers(grpc, wallet, hashes)
    latest = rest.latest_inference(67, wallet.address)
    assert latest is not None
    assert latest.value == "0.0123"
    result = rest.find_tx(hashes[1])
    assert result is not None
    assert (result.code, result.height) == (0, rest.height())
    node.call(lambda chain: chain.advance(720))
    assert [inference.value for inference in rest.inferences_at(67, 1)] == ["0.0123"]
    assert rest.inferences_at(67, 1) == grpc.inferences_at(67, 1)
    assert rest.network_inferences(67) == grpc.network_inferences(67)
    assert rest.network_inferences(67) is not None


@pytest.mark.parametrize("case", UNUSABLE_SERVERS)
def test_rest_unusable_response_raises_retry_later(
    scripted_server: Callable[..., ScriptedServer], stack: ExitStack, case: str
) -> None:
    behavior, text = UNUSABLE_SERVERS[case]
    server = scripted_server(behavior)
    patient = case not in ("silence", "a body that drips", "a head that drips")
    node = stack.enter_context(Node(server.endpoint, chain_id=CHAIN, deadline=60.0 if patient else 0.3))
    with pytest.raises(RetryLater, match=text) as caught:
        node.chain_id()
    while not server.requests:  # the client may have timed out before the request arrived
        threading.Event().wait(0.01)
    assert "/some/path" not in str(caught.value)
    assert server.requests[0].startswith(b"GET /some/path/cosmos/base/tendermint/v1beta1/node_info HTTP/1.1\r\n")


@pytest.mark.parametrize("case", UNUSABLE_SERVERS)
def test_pool_with_two_unusable_endpoints_uses_the_third(
    start_node: Callable[..., EmbeddedNode],
    scripted_server: Callable[..., ScriptedServer],
    stack: ExitStack,
    wallet: Wallet,
    case: str,
) -> None:
    behavior, _ = UNUSABLE_SERVERS[case]
    node = start_node()
    listed = [scripted_server(behavior).endpoint, scripted_server(behavior).endpoint, node.add_endpoint(rest=True)]
    endpoints = stack.enter_context(
        EndpointPool(
            listed,
            chain_id=CHAIN,
            clock=SystemClock(),
            hedge_seconds=0.3 if "drip" in case or case == "silence" else 30.0,
            timeout_seconds=60.0,
        )
    )
    name = _send(node, endpoints, wallet, register_message(wallet, version="v10", topic_id=67))
    result = endpoints.look_up(name).result
    assert result is not None
    assert result.code == 0
    assert [report.state is EndpointState.OK for report in endpoints.report()] == [False, False, True]


def test_pool_mixes_grpc_and_rest(start_node: Callable[..., EmbeddedNode], stack: ExitStack, wallet: Wallet) -> None:
    node = start_node()
    rest = node.add_endpoint(rest=True)
    endpoints = stack.enter_context(
        EndpointPool(
            [rest, node.endpoint], chain_id=CHAIN, clock=SystemClock(), hedge_seconds=30.0, timeout_seconds=60.0
        )
    )
    name = _send(node, endpoints, wallet, register_message(wallet, version="v10", topic_id=67))
    assert endpoints.look_up(name).result == endpoints.find_tx(name)
    assert endpoints.look_up("AB" * 32).absent_heights == (endpoints.height(), endpoints.height())
    assert {report.state for report in endpoints.report()} == {EndpointState.OK}


def test_rest_follows_a_chain_upgrade(start_node: Callable[..., EmbeddedNode], stack: ExitStack) -> None:
    node = start_node(version="v9")
    rest = stack.enter_context(Node(node.add_endpoint(rest=True), chain_id=CHAIN))
    assert rest.version() == "v9"
    node.call(lambda chain: chain.configure(replace(chain.config, version="v10")))
    assert rest.topic(67) is not None
    assert rest.version() == "v10"


def test_rest_wrong_chain_is_detected(start_node: Callable[..., EmbeddedNode], stack: ExitStack) -> None:
    node = start_node(chain_id="localnet-2")
    rest = stack.enter_context(Node(node.add_endpoint(rest=True), chain_id=CHAIN))
    with pytest.raises(WrongChain, match="localnet-2"):
        rest.height()


def test_rest_extra_gateway_fields_are_ignored(
    scripted_server: Callable[..., ScriptedServer], stack: ExitStack
) -> None:
    header = {
        "version": {"block": "11", "app": "0"}, "chain_id": CHAIN, "height": "5123456",
        "time": "2025-09-01T10:20:30.123456789Z", "proposer_address": "allovalcons1abc",
    }  # fmt: skip
    commit = {
        "height": "1",
        "signatures": [{"block_id_flag": "BLOCK_ID_FLAG_COMMIT", "timestamp": "2025-09-01T10:20:30Z"}],
    }
    block = {"header": header, "last_commit": commit, "evidence": {"evidence": []}, "unheard_of": [{}]}
    body = json.dumps({"block_id": {"hash": "aGFzaA=="}, "block": block, "sdk_block": block}).encode()
    node = stack.enter_context(Node(scripted_server(_http(200, body)).endpoint))
    assert node.height() == 5_123_456


def test_rest_close_ends_a_hanging_call(scripted_server: Callable[..., ScriptedServer]) -> None:
    server = scripted_server(_silent)
    node = Node(server.endpoint, chain_id=CHAIN, deadline=3600.0)
    raised: list[ForecastdError] = []

    def ask() -> None:
        try:
            node.height()
        except ForecastdError as error:
            raised.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    while not server.requests:
        threading.Event().wait(0.01)
    node.close()
    thread.join(60.0)
    assert "the connection was closed" in str(raised[0])
