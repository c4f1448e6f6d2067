"""The client of a node, against the local node over a real socket, in both emissions versions."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]  # no stubs
import pytest

from forecastd.chain.codec import tx_hash
from forecastd.chain.methods import METHODS, EmissionsVersion
from forecastd.chain.node import Node
from forecastd.chain.proto.cosmos_pb2 import BaseAccount, QueryAccountRequest, QueryAccountResponse
from forecastd.chain.submit import register, wait_for_transaction
from forecastd.chain.types import ChainParams, Inference, NetworkInferences, Topic
from forecastd.chain.wallet import Wallet
from forecastd.clock import ReplayClock, SystemClock
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.ledger.ledger import Submission
from forecastd.localnet.discovery import endpoint_file, find_endpoint, publish_endpoint
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from forecastd.localnet.faults import NodeFault
from forecastd.localnet.server import listen
from forecastd.localnet.state import Fees
from forecastd.localnet.topics import TopicSpec
from tests.support.localnet import FEE_POLICY, register_wallet, sign_forecast

WALLET = Wallet(b"\3" * 32)
TOPIC = TopicSpec(67, epoch_length=20, worker_submission_window=10)
VERSIONS = pytest.mark.parametrize("version", ["v9", "v10"])
Open = Callable[..., AbstractContextManager[tuple[EmbeddedNode, Node]]]


@pytest.fixture
def open_node(tmp_path: Path) -> Open:
    """Opens a local node that makes a block only for a transaction, and a client of it."""

    @contextmanager
    def open_both(**more: Any) -> Iterator[tuple[EmbeddedNode, Node]]:
        options = {"topics": (TOPIC,), "block_time": None, **more}
        with open_embedded(tmp_path, SystemClock(), **options) as embedded, Node(embedded.endpoint) as node:
            yield embedded, node

    return open_both


def wait_for_tx(node: Node, submission: Submission, seconds: float = 30.0) -> Any:
    return wait_for_transaction(
        node, submission.tx_hash, timeout_height=submission.timeout_height, clock=SystemClock(), wake=threading.Event(),
        timeout_seconds=seconds,
    )  # fmt: skip


@VERSIONS
def test_worker_registers_submits_and_reads_its_forecast_back(open_node: Open, version: EmissionsVersion) -> None:
    with open_node(version=version, fees=Fees(registration=500, data_sending=7)) as (embedded, node):
        assert (node.chain_id(), node.version(), node.height()) == ("localnet", version, 1)
        assert node.topic(67) == Topic(67, TOPIC.metadata, 20, 10, TOPIC.ground_truth_lag, 1)
        assert node.is_topic_active(67)
        assert not node.is_registered(67, WALLET.address)
        assert node.latest_inference(67, WALLET.address) is None
        assert node.params() == ChainParams(registration_fee=500, data_sending_fee=7)
        assert node.gas_price() == Decimal(1)
        before = node.balance(WALLET.address)
        fee = register_wallet(node, WALLET)
        assert node.is_registered(67, WALLET.address)
        assert node.can_submit(67, WALLET.address)
        assert before - node.balance(WALLET.address) == fee

        submission = sign_forecast(node, WALLET, value=0.0123)
        answer = node.broadcast(submission.tx_bytes)
        assert (answer.code, answer.tx_hash) == (0, submission.tx_hash)
        result = wait_for_tx(node, submission)
        assert (result.code, result.tx_hash) == (0, submission.tx_hash)
        assert result.gas_used <= submission.gas
        mine = Inference(WALLET.address, 67, 1, "0.0123")
        assert node.latest_inference(67, WALLET.address) == mine
        account = node.account(WALLET.address)
        assert account is not None
        assert account.sequence == 2

        assert node.inferences_at(67, 1) == []  # not settled before the window closes
        assert node.network_inferences(67) is None
        embedded.call(lambda chain: chain.advance(10))
        assert node.open_nonces(67) == []
        assert not node.is_nonce_unfulfilled(67, 1)
        assert node.inferences_at(67, 1) == [mine]
        assert node.network_inferences(67) == NetworkInferences(1, 0.0123, {WALLET.address: 0.0123})
        embedded.call(lambda chain: chain.advance(10))
        assert node.open_nonces(67) == [21]
        assert node.is_nonce_unfulfilled(67, 21)


def test_register_lost_from_the_mempool_is_sent_again(open_node: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forecastd.chain.submit.RESEND_SECONDS", 0.2)
    with open_node() as (embedded, node):
        embedded.set_faults([NodeFault.parse("drop@first=1")])
        register_wallet(node, WALLET)
        assert node.is_registered(67, WALLET.address)


def test_broadcast_same_bytes_again_is_not_paid_twice(open_node: Open) -> None:
    with open_node() as (embedded, node):
        register_wallet(node, WALLET)
        submission = sign_forecast(node, WALLET, value=0.0123)
        assert node.broadcast(submission.tx_bytes).code == 0
        wait_for_tx(node, submission)
        balance = node.balance(WALLET.address)
        repeated = node.broadcast(submission.tx_bytes)
        assert (repeated.codespace, repeated.code) == ("sdk", 19)
        assert node.balance(WALLET.address) == balance
        assert len(embedded.call(lambda chain: chain.state.inclusions(67, 1))) == 1


def test_price_of_a_served_nonce_is_refused(open_node: Open) -> None:
    with open_node() as (_, node):
        register_wallet(node, WALLET)
        submission = sign_forecast(node, WALLET, value=0.0123)
        node.broadcast(submission.tx_bytes)
        wait_for_tx(node, submission)
        with pytest.raises(RetryLater, match="Nothing was signed or paid"):
            sign_forecast(node, WALLET, value=0.5)


def test_price_permanent_refusal_needs_human_before_signing(open_node: Open) -> None:
    poor = Wallet(b"\4" * 32)
    with open_node(faucet=False) as (embedded, node):
        with pytest.raises(NeedsHuman, match="does not exist"):
            sign_forecast(node, poor, value=0.0123)
        embedded.call(lambda chain: chain.fund(poor.address, 10))
        with pytest.raises(NeedsHuman, match="not registered"):
            sign_forecast(node, poor, value=0.0123)
        with pytest.raises(NeedsHuman, match="does not cover the fee"):
            register_wallet(node, poor)
        embedded.call(lambda chain: chain.fund(poor.address, 10**12))
        embedded.call(lambda chain: chain.configure(replace(chain.config, topics=(replace(TOPIC, workers=()),))))
        register_wallet(node, poor)
        assert not node.can_submit(67, poor.address)
        with pytest.raises(NeedsHuman, match="on the list"):
            sign_forecast(node, poor, value=0.0123)
        with pytest.raises(NeedsHuman, match="no such topic"):
            register_wallet(node, poor, 99)


def test_node_missing_items_are_none(open_node: Open) -> None:
    with open_node(faucet=False) as (_, node):
        assert node.topic(99) is None
        assert node.account(WALLET.address) is None
        assert node.balance(WALLET.address) == 0
        assert node.find_tx(tx_hash(b"nothing")) is None
        assert node.latest_inference(67, WALLET.address) is None
        with pytest.raises(RetryLater, match="topic 99 not found"):
            node.open_nonces(99)


def test_node_follows_a_chain_upgrade(open_node: Open) -> None:
    with open_node(version="v9") as (embedded, node):
        register_wallet(node, WALLET)
        assert node.version() == "v9"
        embedded.call(lambda chain: chain.configure(replace(chain.config, version="v10")))
        assert node.open_nonces(67) == [1]
        assert node.version() == "v10"
        submission = sign_forecast(node, WALLET, value=0.0123)
        assert node.broadcast(submission.tx_bytes).code == 0
        assert wait_for_tx(node, submission).code == 0
        embedded.call(lambda chain: chain.configure(replace(chain.config, version="v9")))
        assert node.latest_inference(67, WALLET.address) == Inference(WALLET.address, 67, 1, "0.0123")


def test_node_on_another_chain_gets_no_request(open_node: Open) -> None:
    with open_node() as (embedded, _), Node(embedded.endpoint, chain_id="allora-testnet-1") as node:
        for call in (node.chain_id, node.height, node.version, lambda: node.broadcast(b"x"), lambda: node.topic(67)):
            with pytest.raises(NeedsHuman, match=r"on chain localnet, not on allora-testnet-1"):
                call()


def test_wait_ends_after_the_window_or_on_stop(open_node: Open) -> None:
    with open_node(seal_at_once=False) as (embedded, node):
        embedded.call(lambda chain: chain.state.workers.add((67, WALLET.address)))
        submission = sign_forecast(node, WALLET, value=0.0123)
        node.broadcast(submission.tx_bytes)
        stop = threading.Event()
        stop.set()
        result = wait_for_transaction(
            node,
            submission.tx_hash,
            timeout_height=submission.timeout_height,
            clock=SystemClock(),
            wake=stop,
            timeout_seconds=600.0,
        )
        assert result is None
        embedded.call(lambda chain: setattr(chain.state, "height", submission.timeout_height))
        embedded.call(lambda chain: chain.advance(1))
        assert wait_for_tx(node, submission, seconds=600.0) is None


def test_replay_chain_advances_with_a_stopped_clock(tmp_path: Path) -> None:
    clock, name = ReplayClock(1_571_302_800.0), "localnet-20191017T090000Z"
    for _ in range(2):
        with open_embedded(tmp_path, clock, chain_id=name) as embedded, Node(embedded.endpoint, chain_id=name) as node:
            assert node.open_nonces(67) == [1_571_302_800 // 5]  # nine o'clock, the start of an epoch
            if not node.is_registered(67, WALLET.address):
                register(node, WALLET, 67, FEE_POLICY, chain_id=name, clock=clock, wake=threading.Event())
                assert node.height() == 1_571_302_800 // 5 + 1
    assert (tmp_path / "localnet" / f"{name}.sqlite").is_file()


def test_node_shared_by_two_threads_works(open_node: Open) -> None:
    with open_node() as (_, node):
        heights: list[int] = []
        threads = [threading.Thread(target=lambda: heights.extend(node.height() for _ in range(20))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert heights == [1] * 80


@contextmanager
def raw_server(reply: bytes | None) -> Iterator[str]:
    """A server that is not a node: it sends `reply` to each client, or with None keeps the connection open in silence."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(connection)
                if reply is not None:
                    with closing(connection), suppress(OSError):  # the client may have disconnected
                        connection.recv(4096)
                        connection.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()


HTML = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 20\r\n\r\n<html>sorry</html>\r\n"


@pytest.mark.parametrize("reply", [None, HTML, b"", b"\0" * 100_000], ids=["silence", "html", "disconnect", "garbage"])
def test_node_unusable_server_raises_within_the_deadline(reply: bytes | None) -> None:
    with raw_server(reply) as endpoint, Node(endpoint, deadline=0.3) as node:
        for call in (node.height, node.version):
            with pytest.raises(RetryLater, match=endpoint):
                call()


def test_node_unreachable_error_names_the_call() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # reserved but not listening, so that no other process gets the port
        endpoint = f"127.0.0.1:{reserved.getsockname()[1]}"
        with Node(endpoint) as node, pytest.raises(RetryLater, match=rf"{endpoint}.*GetLatestBlock.*unavailable"):
            node.height()


def test_node_recovered_is_used_by_the_same_client(tmp_path: Path) -> None:
    with open_embedded(tmp_path, SystemClock()) as embedded, Node(embedded.endpoint) as node:
        embedded.set_faults([NodeFault("refuse")])
        with pytest.raises(RetryLater):
            node.height()
        embedded.set_faults()
        assert node.height() >= 1


@pytest.mark.parametrize("junk", [b"", b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", b"{}"])
def test_node_unreadable_request_is_refused_and_serving_continues(open_node: Open, junk: bytes) -> None:
    with open_node() as (embedded, node):
        paths = [f"/{name}" for name in METHODS]
        with grpc.insecure_channel(embedded.endpoint.rpartition("/")[2]) as channel:
            codes = {channel.unary_unary(path).future(junk, timeout=60).code().name for path in paths}
        assert codes <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNKNOWN", "UNIMPLEMENTED"}
        assert node.height() == 1


@VERSIONS
def test_node_other_emissions_version_is_unimplemented(open_node: Open, version: EmissionsVersion) -> None:
    other_version = "v9" if version == "v10" else "v10"
    with open_node(version=version) as (embedded, _):
        address = embedded.endpoint.rpartition("/")[2]
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/emissions.{other_version}.QueryService/GetTopic")(b"", timeout=60)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert caught.value.details() == f"unknown service emissions.{other_version}.QueryService"


def test_node_both_account_queries_agree(open_node: Open) -> None:
    with open_node() as (embedded, node):
        register_wallet(node, WALLET)
        with grpc.insecure_channel(embedded.endpoint.rpartition("/")[2]) as channel:
            request = QueryAccountRequest(address=WALLET.address).SerializeToString()
            raw = channel.unary_unary("/cosmos.auth.v1beta1.Query/Account")(request, timeout=60)
        account = BaseAccount.FromString(QueryAccountResponse.FromString(raw).account.value)
        assert (account.address, account.sequence) == (WALLET.address, 1)
        assert account.pub_key.value[2:] == WALLET.public_key


def test_find_endpoint_ignores_stale_and_invalid_files(tmp_path: Path) -> None:
    assert find_endpoint(tmp_path) is None
    with open_embedded(tmp_path, SystemClock()) as embedded:
        with publish_endpoint(tmp_path, embedded.endpoint, "localnet"):
            assert find_endpoint(tmp_path) == embedded.endpoint
            assert find_endpoint(tmp_path, chain_id="localnet-x") is None
            document = endpoint_file(tmp_path).read_text()
        assert not endpoint_file(tmp_path).exists()
        embedded.set_faults([NodeFault("refuse")])  # refuses connections but keeps the port
        for text in (document, "", "[]", "{}", '{"endpoint": 5, "chain_id": "localnet"}', "\0"):
            endpoint_file(tmp_path).write_text(text)
            assert find_endpoint(tmp_path) is None


def test_listen_socket_protocol_is_tcp() -> None:
    """Otherwise asyncio does not disable Nagle's algorithm, and every call waits 40 ms for an acknowledgement."""
    with listen(0) as sock:
        assert sock.proto == socket.IPPROTO_TCP
        with pytest.raises(OSError, match="in use"):
            listen(sock.getsockname()[1])
