"""Every fault of the local node: what a real client gets, what the chain's record shows, and a healthy endpoint next
to it.
"""

from __future__ import annotations

import random
import re
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]  # no stubs
import pytest

from forecastd.chain.codec import TxParameters, build_tx, payload_message, register_message
from forecastd.chain.node import Node
from forecastd.chain.proto import emissions_pb2
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.errors import ForecastdError, RetryLater
from forecastd.ledger.ledger import Submission
from forecastd.localnet.chain import ChainConfig, LocalChain
from forecastd.localnet.chain_faults import competitor_address
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from forecastd.localnet.faults import BEHAVIORS, NodeFault, parse_faults
from forecastd.localnet.history import state_at
from forecastd.localnet.record import InferenceStatus
from forecastd.localnet.state import TxRecord
from forecastd.localnet.store import ChainStore
from forecastd.localnet.topics import TopicSpec
from forecastd.testing import ManualClock
from tests.support.localnet import register_wallet, sign_forecast
from tests.support.waiting import wait_until

WALLET, OTHER = Wallet(b"\3" * 32), Wallet(b"\4" * 32)
TOPIC = TopicSpec(67, epoch_length=20, worker_submission_window=10)
SHORT_TIMEOUT = 0.6  # seconds, for an answer that never comes
LONG_TIMEOUT = 60.0  # seconds, for an answer that comes, on a busy machine


@dataclass
class NodeUnderTest:
    """A node and a client of its healthy endpoint."""

    embedded: EmbeddedNode
    node: Node

    def register(self, wallet: Wallet = WALLET) -> None:
        with self.sealing():
            register_wallet(self.node, wallet)

    @contextmanager
    def sealing(self) -> Iterator[None]:
        """Make a block as soon as a transaction is pending, during the `with` block."""
        stop = threading.Event()

        def seal() -> None:
            while not stop.wait(0.01):
                self.embedded.call(lambda chain: chain.seal() if chain.pending_count else None)

        thread = threading.Thread(target=seal)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def sign(self, *, value: float = 0.5, wallet: Wallet = WALLET) -> Submission:
        """A payload for the open window, signed as a worker does."""
        return sign_forecast(self.node, wallet, value=value)

    def rate(self, wallet: Wallet, score: float) -> None:
        self.embedded.call(lambda chain: chain.set_score(67, wallet.address, score))

    def inclusions(self, wallet: Wallet = WALLET, nonce: int | None = None) -> tuple[TxRecord, ...]:
        record = self.embedded.record()
        return record.inclusions(67, record.windows(67)[-1].nonce if nonce is None else nonce, wallet.address)


StartNode = Callable[..., NodeUnderTest]


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[StartNode]:
    """Starts a node that makes blocks on demand only, with the worker registered."""
    closing: list[Any] = []

    def start(**more: Any) -> NodeUnderTest:
        options = {"topics": (TOPIC,), "block_time": None, "seal_at_once": False, **more}
        context = open_embedded(tmp_path, SystemClock(), **options)
        embedded = context.__enter__()
        node = Node(embedded.endpoint, chain_id="localnet", deadline=LONG_TIMEOUT)
        closing.extend([lambda: context.__exit__(None, None, None), node.close])
        running = NodeUnderTest(embedded, node)
        running.register()
        return running

    yield start
    for close in reversed(closing):
        close()


def connect(url: str, *, hangs: bool = False) -> Node:
    """A client of an endpoint. Its deadline is short when the endpoint hangs."""
    return Node(url, chain_id="localnet", deadline=SHORT_TIMEOUT if hangs else LONG_TIMEOUT)


def describe_call(call: Callable[[], Any]) -> str:
    """The result or the error of a call, as one line."""
    try:
        answer = call()
    except ForecastdError as error:
        return f"{type(error).__name__}: {error}"
    return f"{answer.codespace} {answer.code}".strip() if hasattr(answer, "codespace") else str(answer)


TIMEOUT = "deadline exceeded|answer in full"
BROKEN = "unavailable|cannot be reached|connection broke"
NO_GRPC = "http2 header|END_STREAM|HTTP|Failed parsing|internal"
UNREADABLE = "unreadable|not JSON|without a chain id|unimplemented|internal|INTERNAL"
EXPECTED: dict[str, tuple[str, str, bool]] = {
    # answer of height(), answer of broadcast(), whether the transaction was accepted
    "refuse": (BROKEN, BROKEN, False),
    "reset": (BROKEN, BROKEN, False),
    "silent": (TIMEOUT, TIMEOUT, False),
    "web-server": (NO_GRPC, NO_GRPC, False),
    "hang": (TIMEOUT, TIMEOUT, False),
    "hang@method=BroadcastTx": (r"^\d+$", TIMEOUT, False),
    "slow=2": (TIMEOUT, TIMEOUT, False),
    "drip": (TIMEOUT, TIMEOUT, False),
    "http-429": ("429", "429", False),
    "http-502": ("502", "502", False),
    "html": (NO_GRPC, NO_GRPC, False),
    "truncated": (UNREADABLE, UNREADABLE, False),
    "garbage": (UNREADABLE, UNREADABLE, False),
    "blank": (UNREADABLE, UNREADABLE, False),
    "empty": (UNREADABLE, UNREADABLE, False),
    "huge": ("resource exhausted|more than 4 MB", "resource exhausted|more than 4 MB", False),
    "disconnect": (BROKEN, BROKEN, False),
    "disconnect@method=BroadcastTx": (r"^\d+$", BROKEN, True),
    "goaway": (BROKEN, BROKEN, False),
    "rate-limit": ("resource exhausted", "resource exhausted", False),
    "unavailable": ("unavailable", "unavailable", False),
    "unauthorized": ("unauthenticated", "unauthenticated", False),
    "internal": ("internal", "internal", False),
    "unimplemented": ("unknown service", "unknown service", False),
    "wrong-chain-id": ("is on chain allora-elsewhere-1", "is on chain allora-elsewhere-1", False),
    "frozen-height": (r"^\d+$", "^0$", True),
    "behind=500": ("^1$", "sdk 32", False),  # its state is older than the registration that used sequence 0
    "no-index": (r"^\d+$", "^0$", True),
    "index-late=40": (r"^\d+$", "^0$", True),
    "index-behind=3": (r"^\d+$", "^0$", True),
    "lose-answer": (r"^\d+$", "unavailable", True),
    "hang-answer": (r"^\d+$", TIMEOUT, True),
    "drop": (r"^\d+$", "^0$", False),
    "mempool-full": (r"^\d+$", "sdk 20", False),
    "sequence-race": (r"^\d+$", "sdk 32", False),
    "tx-cache": (r"^\d+$", "sdk 19", False),
    "panic": (r"^\d+$", "sdk 111222", False),
    "strange-code": (r"^\d+$", "wasm 9999", False),
}
COUNTED_BEHAVIORS = {"flapping=5", "unavailable@every=2", "hang@p=0.3,seed=7", "duplicate"}
"""Behaviors that differ between calls. They have tests of their own."""


def test_behaviors_all_have_a_test() -> None:
    assert set(EXPECTED) | COUNTED_BEHAVIORS == set(BEHAVIORS)


@pytest.mark.parametrize("rest", [False, True], ids=["grpc", "rest"])
@pytest.mark.parametrize("name", EXPECTED)
def test_fault_shows_its_described_effect_and_the_chain_continues(start_node: StartNode, name: str, rest: bool) -> None:
    running = start_node()
    height, broadcast, accepted = EXPECTED[name]
    submission = running.sign()
    faulty = running.embedded.add_endpoint([BEHAVIORS[name]], rest=rest)
    with connect(faulty, hangs=height == TIMEOUT) as node:
        answer = describe_call(node.height)
        assert re.search(height, answer), answer
    with connect(faulty, hangs=broadcast == TIMEOUT) as node:
        while True:
            answer = describe_call(lambda: node.broadcast(submission.tx_bytes))
            assert re.search(broadcast, answer), answer
            if broadcast != TIMEOUT or not accepted or running.embedded.call(lambda chain: chain.pending_count):
                break  # otherwise the client timed out before the node received the bytes
    assert running.node.height() == 2
    assert describe_call(lambda: running.node.broadcast(submission.tx_bytes)) == ("sdk 19" if accepted else "0")
    running.embedded.advance()
    assert [tx_record.code for tx_record in running.inclusions()] == [0]
    assert running.node.find_tx(submission.tx_hash) is not None
    assert running.embedded.record().inference_status(67, 1, WALLET.address) is InferenceStatus.ADMITTED


@pytest.mark.parametrize("rest", [False, True], ids=["grpc", "rest"])
def test_set_faults_changes_a_running_endpoint(start_node: StartNode, rest: bool) -> None:
    running = start_node()
    url = running.embedded.add_endpoint(rest=rest)
    with connect(url) as node:
        for _ in range(3):
            assert node.height() == 2
            running.embedded.set_faults([NodeFault("refuse")], url)
            assert re.search(BROKEN, describe_call(node.height))
            running.embedded.set_faults([NodeFault("unavailable")], url)
            assert "unavailable" in describe_call(node.height)
            running.embedded.set_faults((), url)
    running.embedded.set_faults([NodeFault("rate-limit")])
    assert "resource exhausted" in describe_call(running.node.height)
    with pytest.raises(KeyError):
        running.embedded.set_faults((), "grpc+http://127.0.0.1:1")
    with pytest.raises(ValueError, match="of the chain"):
        running.embedded.add_endpoint(parse_faults("late"))
    with pytest.raises(ValueError, match="of an endpoint"):
        running.embedded.inject(NodeFault("hang"))


def test_fault_refuse_between_two_heights(start_node: StartNode) -> None:
    running = start_node()
    url = running.embedded.add_endpoint(parse_faults("refuse@from=4@until=5"))
    port = int(url.rpartition(":")[2])
    observations = []
    for _ in range(5):
        observations.append((running.node.height(), is_listening(port)))
        running.embedded.advance()
    assert observations == [(2, True), (3, True), (4, False), (5, False), (6, True)]


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


def test_fault_flapping_alternates(start_node: StartNode) -> None:
    running = start_node()
    with Node(running.embedded.add_endpoint(parse_faults("flapping=2"))) as node:
        good = [describe_call(node.height) == "2" for _ in range(8)]
    assert good == [True, True, False, False, True, True, False, False]


def test_fault_every_two_fails_alternate_requests(start_node: StartNode) -> None:
    running = start_node()
    with Node(running.embedded.add_endpoint(parse_faults("unavailable@every=2"))) as node:
        assert [describe_call(node.height) == "2" for _ in range(6)] == [True, False] * 3


def test_fault_probability_with_seed_is_reproducible(start_node: StartNode) -> None:
    running = start_node()
    expected = random.Random(7)
    url = running.embedded.add_endpoint(parse_faults("hang@p=0.3,seed=7"))
    for _ in range(6):
        hangs = expected.random() < 0.3
        with Node(url, deadline=SHORT_TIMEOUT if hangs else LONG_TIMEOUT) as node:
            assert (describe_call(node.height) == "2") is not hangs


def test_fault_duplicate_answer_is_not_taken_for_the_next(start_node: StartNode) -> None:
    running = start_node()
    with Node(running.embedded.add_endpoint([NodeFault("duplicate")]), deadline=SHORT_TIMEOUT) as node:
        answers = [describe_call(node.height) for _ in range(3)]
        assert all(answer == "2" or re.search(TIMEOUT, answer) for answer in answers), answers


def test_fault_two_at_once_both_apply(start_node: StartNode) -> None:
    running = start_node()
    submission = running.sign()
    url = running.embedded.add_endpoint(parse_faults("slow=0.01,index-behind=1,lose-answer@first=1"))
    with Node(url, chain_id="localnet") as node:
        assert "unavailable" in describe_call(lambda: node.broadcast(submission.tx_bytes))
        assert describe_call(lambda: node.broadcast(submission.tx_bytes)) == "sdk 19"
        running.embedded.advance()
        assert node.find_tx(submission.tx_hash) is None
        running.embedded.advance()
        result = node.find_tx(submission.tx_hash)
        assert result is not None
        assert result.height == 3


def test_fault_behind_endpoint_lags_in_every_answer(start_node: StartNode) -> None:
    running = start_node()
    urls = [running.embedded.add_endpoint(parse_faults(text)) for text in ("behind=2", "frozen-height")]
    submission = running.sign()
    with Node(urls[0], chain_id="localnet") as behind, Node(urls[1], chain_id="localnet") as frozen:
        assert frozen.height() == 2
        running.node.broadcast(submission.tx_bytes)
        running.embedded.advance()
        for node, height in ((running.node, 3), (behind, 1), (frozen, 2)):
            assert node.height() == height
            assert (node.find_tx(submission.tx_hash) is not None) == (height == 3)
            assert (node.latest_inference(67, WALLET.address) is not None) == (height == 3)
            assert node.is_registered(67, WALLET.address) == (height > 1)
            account = node.account(WALLET.address)
            assert account is not None
            assert account.sequence == height - 1
        running.embedded.advance(2)
        assert (behind.height(), frozen.height()) == (3, 2)
        assert behind.find_tx(submission.tx_hash) is not None


def test_fault_index_late_or_missing_hides_transactions(start_node: StartNode) -> None:
    running = start_node()
    submission = running.sign()
    running.node.broadcast(submission.tx_bytes)
    running.embedded.call(lambda chain: chain.seal())
    urls = [
        running.embedded.add_endpoint(parse_faults(text)) for text in ("no-index", "index-late=600", "index-late=0.001")
    ]
    with Node(urls[0]) as no_index, Node(urls[1]) as late_index, Node(urls[2]) as early_index:
        with pytest.raises(RetryLater, match="indexing is disabled"):
            no_index.find_tx(submission.tx_hash)
        assert late_index.find_tx(submission.tx_hash) is None
        assert early_index.find_tx(submission.tx_hash) is not None


# Faults of the chain


def test_fault_out_of_gas_costs_the_fee_and_a_new_tx_passes(start_node: StartNode) -> None:
    running = start_node()
    running.embedded.inject(*parse_faults("out-of-gas=3@first=1"))
    before = running.node.balance(WALLET.address)
    for _ in range(2):
        assert describe_call(lambda: running.node.broadcast(running.sign().tx_bytes)) == "0"
        running.embedded.advance()
    first, second = running.inclusions()
    assert (first.codespace, first.code, second.code) == ("sdk", 11, 0)
    assert first.gas_used > first.gas_wanted
    assert before - running.node.balance(WALLET.address) == first.fee + second.fee + 10
    assert running.embedded.record().fees_paid(WALLET.address) >= first.fee + second.fee


def test_fault_low_fee_refuses_until_repriced(start_node: StartNode) -> None:
    running = start_node()
    submission = running.sign()
    running.embedded.inject(*parse_faults("low-fee=20@first=1"))
    before = running.node.gas_price()
    assert describe_call(lambda: running.node.broadcast(submission.tx_bytes)) == "sdk 13"
    after = running.node.gas_price()
    assert before is not None
    assert after == 20 * before
    assert describe_call(lambda: running.node.broadcast(running.sign().tx_bytes)) == "0"


def test_fault_sequence_used_by_another_signer(start_node: StartNode) -> None:
    running = start_node()
    submission = running.sign()
    running.embedded.inject(*parse_faults("sequence@first=1"))
    assert describe_call(lambda: running.node.broadcast(submission.tx_bytes)) == "0"
    running.embedded.advance()
    assert running.inclusions() == ()
    account = running.node.account(WALLET.address)
    assert account is not None
    assert account.sequence == submission.sequence + 1
    assert describe_call(lambda: running.node.broadcast(submission.tx_bytes)) == "sdk 32"
    running.embedded.call(lambda chain: chain.add_foreign_transaction(WALLET.address))
    account = running.node.account(WALLET.address)
    assert account is not None
    assert account.sequence == submission.sequence + 2


def test_fault_drop_from_mempool_allows_resending(start_node: StartNode) -> None:
    running = start_node()
    submission = running.sign()
    running.embedded.inject(*parse_faults("drop-from-mempool@first=1"))
    for expected in ((), (0,)):
        assert describe_call(lambda: running.node.broadcast(submission.tx_bytes)) == "0"
        running.embedded.advance()
        assert tuple(tx_record.code for tx_record in running.inclusions()) == expected


def test_fault_late_payload_stays_in_the_mempool(start_node: StartNode) -> None:
    running = start_node()
    submission = running.sign()
    running.embedded.inject(*parse_faults("late=3"))
    running.node.broadcast(submission.tx_bytes)
    running.embedded.advance(3)
    assert running.inclusions() == ()
    assert describe_call(lambda: running.node.broadcast(submission.tx_bytes)) == "sdk 19"
    running.embedded.advance()
    assert [tx_record.height for tx_record in running.inclusions()] == [6]


def test_fault_reorder_reverses_the_next_block(start_node: StartNode) -> None:
    running = start_node()
    running.register(OTHER)
    running.embedded.inject(*parse_faults("reorder"))
    for wallet in (WALLET, OTHER):
        running.node.broadcast(running.sign(wallet=wallet).tx_bytes)
    running.embedded.advance()
    order = [tx_record.sender for tx_record in running.embedded.record().transactions if tx_record.kind == "payload"]
    assert order == [OTHER.address, WALLET.address]


def test_fault_window_closing_expires_the_tx_without_fee(start_node: StartNode) -> None:
    running = start_node()
    submission = running.sign()
    account = running.embedded.call(lambda chain: chain.account(OTHER.address))
    assert account is not None
    forever = build_tx(
        OTHER,
        payload_message(OTHER, version="v10", topic_id=67, nonce=1, value="0.5"),
        TxParameters(account.number, 0, 200_000, 10**6),
        chain_id="localnet",
    )
    running.embedded.inject(*parse_faults("window-closing"))
    assert describe_call(lambda: running.node.broadcast(submission.tx_bytes)) == "0"
    assert describe_call(lambda: running.node.broadcast(forever)) == "0"
    assert running.embedded.advance() == 11
    assert running.node.open_nonces(67) == []
    assert running.inclusions() == ()
    assert [(tx_record.codespace, tx_record.code) for tx_record in running.inclusions(OTHER)] == [("emissions", 67)]
    assert running.embedded.record().windows(67)[0].is_closed
    assert describe_call(lambda: running.node.broadcast(submission.tx_bytes)) == "sdk 30"


def test_fault_restart_loses_the_mempool_and_keeps_the_port(start_node: StartNode) -> None:
    running = start_node()
    port = int(running.embedded.endpoint.rpartition(":")[2])
    submission = running.sign()
    running.embedded.inject(*parse_faults("restart=3600@first=1"))
    assert describe_call(lambda: running.node.broadcast(submission.tx_bytes)) == "0"
    wait_until(lambda: not is_listening(port), "the node is down")
    running.embedded.restart(0.01)  # shortens the down time
    wait_until(lambda: is_listening(port), "the node is back")
    running.embedded.advance()
    assert running.inclusions() == ()

    def is_accepted() -> bool:
        answer = describe_call(lambda: running.node.broadcast(submission.tx_bytes))
        assert answer == "0" or re.search(BROKEN, answer)  # grpcio pauses before it reconnects to a port that refused
        return answer == "0"

    wait_until(is_accepted, "the payload is accepted")
    running.embedded.advance()
    assert [tx_record.code for tx_record in running.inclusions()] == [0]


def test_fault_upgrade_changes_the_emissions_version(start_node: StartNode) -> None:
    running = start_node(version="v9")
    running.embedded.inject(*parse_faults("upgrade=v10@from=4"))
    old = running.sign()
    assert running.node.version() == "v9"
    running.embedded.advance()
    assert describe_call(lambda: running.node.broadcast(old.tx_bytes)) == "0"
    running.embedded.advance()
    assert running.inclusions() == ()  # written in the old version
    assert running.node.open_nonces(67) == [1]  # queried again in the new version
    assert running.node.version() == "v10"
    assert describe_call(lambda: running.node.broadcast(old.tx_bytes)) == "sdk 2"
    assert describe_call(lambda: running.node.broadcast(running.sign().tx_bytes)) == "0"
    running.embedded.advance()
    assert [tx_record.code for tx_record in running.inclusions()] == [0]
    with grpc.insecure_channel(running.embedded.endpoint.rpartition("/")[2]) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/emissions.v9.QueryService/GetParams")(b"", timeout=10)
        assert caught.value.details() == "unknown service emissions.v9.QueryService"


# Active set and scores


def test_fault_passive_returns_code_0_and_stores_nothing(start_node: StartNode) -> None:
    running = start_node(topics=(TopicSpec(67, 20, 10, active_set=3),))
    running.embedded.inject(*parse_faults("passive@first=1"))
    running.embedded.advance(19)
    assert running.node.open_nonces(67) == [21]
    assert running.node.broadcast(running.sign().tx_bytes).code == 0
    running.embedded.advance()
    assert running.node.broadcast(sign_without_checks(running, nonce=21)).code == 0
    running.embedded.advance()
    assert [(tx_record.codespace, tx_record.code) for tx_record in running.inclusions()] == [("", 0), ("emissions", 78)]
    record = running.embedded.record()
    assert record.inference_status(67, 21, WALLET.address) is InferenceStatus.PASSIVE
    assert set(record.active[67, 21]) == {competitor_address(67, number) for number in range(3)}
    assert running.node.latest_inference(67, WALLET.address) is None
    running.embedded.advance(20)
    running.node.broadcast(running.sign().tx_bytes)
    running.embedded.advance()
    assert running.embedded.record().inference_status(67, 41, WALLET.address) is InferenceStatus.ADMITTED


def sign_without_checks(running: NodeUnderTest, *, nonce: int) -> bytes:
    """A payload that a simulation would refuse."""
    account = running.node.account(WALLET.address)
    assert account is not None
    return build_tx(
        WALLET,
        payload_message(WALLET, version="v10", topic_id=67, nonce=nonce, value="0.5"),
        TxParameters(account.number, account.sequence, 200_000, 10**6),
        chain_id="localnet",
    )


def test_active_set_better_worker_evicts_the_lowest(start_node: StartNode) -> None:
    running = start_node(topics=(TopicSpec(67, 20, 10, active_set=1),))
    third = Wallet(b"\5" * 32)
    for wallet, score in ((OTHER, 2.0), (third, 1.0)):
        running.register(wallet)
        running.rate(wallet, score)
    for wallet in (WALLET, OTHER, third):
        running.node.broadcast(running.sign(wallet=wallet).tx_bytes)
        running.embedded.advance()
    record = running.embedded.record()
    statuses = [record.inference_status(67, 1, wallet.address) for wallet in (WALLET, OTHER, third)]
    assert statuses == [InferenceStatus.EVICTED, InferenceStatus.ADMITTED, InferenceStatus.PASSIVE]
    latest_inference = running.node.latest_inference(67, WALLET.address)
    assert latest_inference is not None
    assert latest_inference.nonce == 1  # it was in the set before its eviction
    running.embedded.advance(10)
    assert [inference.worker for inference in running.node.inferences_at(67, 1)] == [OTHER.address]
    assert "already submitted" in str(running.embedded.call(lambda chain: chain.simulate(sign_v10(chain))))


def sign_v10(chain: LocalChain) -> bytes:
    """A second payload for nonce 1 during its window, for a simulation."""
    chain.state.height = 5
    message = payload_message(WALLET, version="v10", topic_id=67, nonce=1, value="0.7")
    return build_tx(WALLET, message, TxParameters(0, 2, 200_000, 10**6), chain_id="localnet")


def test_fault_evicted_replaces_admitted_in_the_last_block(start_node: StartNode) -> None:
    running = start_node(topics=(TopicSpec(67, 20, 10, active_set=2),))
    running.embedded.inject(*parse_faults("evicted"))
    running.embedded.advance(19)
    running.node.broadcast(running.sign().tx_bytes)
    running.embedded.advance()
    statuses = []
    while not running.embedded.record().windows(67)[-1].is_closed:
        statuses.append(running.embedded.record().inference_status(67, 21, WALLET.address))
        running.embedded.advance()
    assert statuses == [InferenceStatus.ADMITTED] * 8 + [InferenceStatus.EVICTED]


def test_scores_are_served_and_absence_lowers_them(start_node: StartNode) -> None:
    running = start_node()
    running.embedded.call(lambda chain: chain.set_score(67, WALLET.address, 1.0))
    running.node.broadcast(running.sign().tx_bytes)
    running.embedded.advance()
    with grpc.insecure_channel(running.embedded.endpoint.rpartition("/")[2]) as channel:

        def query(name: str, **fields: Any) -> Any:
            request = getattr(emissions_pb2, f"{name}Request")(**fields).SerializeToString()
            raw = channel.unary_unary(f"/emissions.v10.QueryService/{name}")(request, timeout=10)
            return getattr(emissions_pb2, f"{name}Response").FromString(raw)

        worst = query("GetCurrentLowestInfererScore", topic_id=67).score
        assert (worst.address, float(worst.score)) == (WALLET.address, 1.0)
        scores = []
        for _ in range(3):
            running.embedded.advance(20)
            scores.append(float(query("GetInfererScoreEma", topic_id=67, inferer=WALLET.address).score.score))
        assert scores == pytest.approx([0.9, 0.81, 0.729])
        assert query("GetParams").params.max_top_inferers_to_reward == 32


# Time, history and the disk


def test_advance_hundreds_of_epochs_without_a_race(start_node: StartNode) -> None:
    running = start_node(topics=(TopicSpec(67, 5, 4),))
    height = running.node.height()
    heights: list[int] = []

    def step() -> None:
        heights.extend(running.embedded.advance(5) for _ in range(50))

    threads = [threading.Thread(target=step) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(heights) == list(range(height + 5, height + 1001, 5))
    windows = running.embedded.record().windows(67)
    assert [window.nonce for window in windows] == list(range(1, height + 1001, 5))
    assert all(window.last_block == window.nonce + 3 for window in windows)
    assert running.embedded.record().windows(67, since=windows[-1].nonce) == (windows[-1],)


def test_state_at_equals_recorded_states(tmp_path: Path) -> None:
    rng = random.Random(11)
    store = ChainStore(tmp_path / "chain.sqlite")
    topic = TopicSpec(67, 6, 4, active_set=2)
    chain = LocalChain(ChainConfig(topics=(topic,), block_time=None), store, ManualClock(1_000_000.0))
    wallets = [Wallet(bytes([number]) * 32) for number in range(1, 6)]
    for wallet in wallets:
        chain.account(wallet.address)
        chain.set_score(67, wallet.address, rng.random())
    states = []
    for _ in range(60):
        for wallet in rng.sample(wallets, 2):
            account = chain.account(wallet.address)
            assert account is not None
            nonces = topic.open_nonces(chain.state.height)
            is_registered = (67, wallet.address) in chain.state.workers
            message = (
                payload_message(wallet, version="v10", topic_id=67, nonce=nonces[0] if nonces else 1, value="0.5")
                if is_registered
                else register_message(wallet, version="v10", topic_id=67)
            )
            parameters = TxParameters(account.number, account.sequence, rng.choice([80_000, 200_000]), 10**6)
            chain.broadcast(build_tx(wallet, message, parameters, chain_id="localnet"))
        chain.advance(1)
        states.append(deepcopy(chain.state))
    assert {record.code for record in chain.state.txs.values()} >= {0, 11}
    for expected_state in states:
        past_state = state_at(chain.state, expected_state.height)
        assert (past_state.height, past_state.txs, past_state.workers) == (
            expected_state.height,
            expected_state.txs,
            expected_state.workers,
        )
        for address, account in expected_state.accounts.items():
            assert (past_state.accounts[address].sequence, past_state.accounts[address].balance) == (
                account.sequence, account.balance
            )  # fmt: skip
    store.close()


def test_store_keeps_scores_and_migrates_version_1(tmp_path: Path) -> None:
    with open_embedded(
        tmp_path, SystemClock(), topics=(TopicSpec(67, 20, 10, active_set=1),), block_time=None
    ) as embedded:
        embedded.inject(NodeFault("evicted"))
        embedded.advance(40)
        before = embedded.record()
        assert before.active
        assert before.scores
    with open_embedded(tmp_path, SystemClock(), block_time=None) as embedded:
        after = embedded.record()
        assert (after.active, after.evicted, after.scores) == (before.active, before.evicted, before.scores)
        assert embedded.call(lambda chain: chain.state.topics[0].active_set) == 1
    path = tmp_path / "localnet" / "localnet.sqlite"
    with sqlite3.connect(path) as db:  # the schema of version 1
        db.execute("DROP TABLE scores")
        db.execute("ALTER TABLE inferences DROP COLUMN evicted")
        db.execute("PRAGMA user_version=1")
    db.close()
    with open_embedded(tmp_path, SystemClock(), block_time=None) as embedded:
        record = embedded.record()
        assert (record.height, record.scores, set(record.active)) == (before.height, {}, set(before.active))
