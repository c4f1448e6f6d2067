"""Every fault of the local node as a real client meets it, what the chain's own record says of it, and that a faulty
endpoint leaves a healthy one alone."""

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

import pytest

from forecastd.chain.codec import build_tx, payload_message, register_message, sign_submission
from forecastd.chain.node import Node
from forecastd.chain.submit import Spending, price, register
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.errors import ForecastdError, RetryLater
from forecastd.ledger import Submission
from forecastd.localnet.chain import LocalChain, Rules
from forecastd.localnet.embedded import Embedded, open_embedded
from forecastd.localnet.faults import BEHAVIOURS, Fault, parse_faults
from forecastd.localnet.history import past
from forecastd.localnet.record import Standing
from forecastd.localnet.state import TxRecord
from forecastd.localnet.store import Store
from forecastd.localnet.topics import TopicSpec
from forecastd.localnet.trouble import rival

WALLET, OTHER = Wallet(b"\3" * 32), Wallet(b"\4" * 32)
TOPIC = TopicSpec(67, epoch_length=20, worker_submission_window=10)
SPENDING = Spending(1, "standard", None)
IMPATIENT = 0.6  # seconds a client waits for an answer that will not come
PATIENT = 60.0  # and for one that will, on a machine that is busy


@dataclass
class Running:
    """A node, and a client of its healthy endpoint."""

    embedded: Embedded
    node: Node

    def enlist(self, wallet: Wallet = WALLET) -> None:
        with self.sealing():
            register(self.node, wallet, 67, SPENDING, chain_id="localnet", clock=SystemClock(), wake=threading.Event())

    @contextmanager
    def sealing(self) -> Iterator[None]:
        """Make a block as soon as a transaction waits, as long as this lasts."""
        done = threading.Event()

        def seal() -> None:
            while not done.wait(0.01):
                self.embedded.call(lambda chain: chain.seal() if chain.waiting else None)

        thread = threading.Thread(target=seal)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def sign(self, *, value: float = 0.5, wallet: Wallet = WALLET) -> Submission:
        """A payload for the open window, as the worker would sign it now."""
        version, nonce = self.node.version(), self.node.open_nonces(67)[0]
        message = payload_message(wallet, version=version, topic_id=67, nonce=nonce, value=str(value))
        cost = price(self.node, wallet, message, SPENDING)
        return sign_submission(
            wallet, version=version, chain_id="localnet", topic_id=67, nonce=nonce, value=value, synthetic=True,
            account_number=cost.account_number, sequence=cost.sequence, gas=cost.gas, fee_uallo=cost.fee_uallo,
            timeout_height=nonce + 9,
        )  # fmt: skip

    def rate(self, wallet: Wallet, score: float) -> None:
        self.embedded.call(lambda chain: chain.set_score(67, wallet.address, score))

    def included(self, wallet: Wallet = WALLET, nonce: int | None = None) -> tuple[TxRecord, ...]:
        record = self.embedded.record()
        return record.inclusions(67, record.windows(67)[-1].nonce if nonce is None else nonce, wallet.address)


Opened = Callable[..., Running]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """A node whose blocks are made by hand alone, with the worker registered."""
    closing: list[Any] = []

    def start(**more: Any) -> Running:
        asked = {"topics": (TOPIC,), "block_time": None, "seal_at_once": False, **more}
        context = open_embedded(tmp_path, SystemClock(), **asked)
        embedded = context.__enter__()
        node = Node(embedded.endpoint, chain_id="localnet", deadline=PATIENT)
        closing.extend([lambda: context.__exit__(None, None, None), node.close])
        running = Running(embedded, node)
        running.enlist()
        return running

    yield start
    for close in reversed(closing):
        close()


def asking(url: str, *, hangs: bool = False) -> Node:
    """A client of an endpoint, which waits for long only where an answer will come."""
    return Node(url, chain_id="localnet", deadline=IMPATIENT if hangs else PATIENT)


def told(call: Callable[[], Any]) -> str:
    """What a call comes to, in a line."""
    try:
        answer = call()
    except ForecastdError as error:
        return f"{type(error).__name__}: {error}"
    return f"{answer.codespace} {answer.code}".strip() if hasattr(answer, "codespace") else str(answer)


TIMEOUT = "deadline exceeded|not answered in full"
BROKEN = "unavailable|cannot be reached|broke off"
NO_GRPC = "http2 header|END_STREAM|HTTP|Failed parsing|internal"
UNREADABLE = "not readable|not JSON|without a chain id|unimplemented|internal|INTERNAL"
SEEN: dict[str, tuple[str, str, bool]] = {
    # what height() says, what broadcast() says, whether the transaction was taken
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
    "behind=500": ("^1$", "sdk 32", False),  # it knows nothing yet of the registration that used sequence 0
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
BY_COUNT = {"flapping=5", "unavailable@every=2", "hang@p=0.3,seed=7", "duplicate"}
"""Behaviours that differ from call to call; they have tests of their own."""


def test_every_behaviour_is_looked_at() -> None:
    assert set(SEEN) | BY_COUNT == set(BEHAVIOURS)


@pytest.mark.parametrize("rest", [False, True], ids=["grpc", "rest"])
@pytest.mark.parametrize("name", SEEN)
def test_a_client_sees_what_the_fault_claims_and_the_chain_goes_on(opened: Opened, name: str, rest: bool) -> None:
    running = opened()
    height, broadcast, taken = SEEN[name]
    submission = running.sign()
    faulty = running.embedded.add_endpoint([BEHAVIOURS[name]], rest=rest)
    with asking(faulty, hangs=height == TIMEOUT) as node:
        answer = told(node.height)
        assert re.search(height, answer), answer
    with asking(faulty, hangs=broadcast == TIMEOUT) as node:
        while True:
            answer = told(lambda: node.broadcast(submission.tx_bytes))
            assert re.search(broadcast, answer), answer
            if broadcast != TIMEOUT or not taken or running.embedded.call(lambda chain: chain.waiting):
                break  # else the client's patience was over before its bytes came through to the node
    assert running.node.height() == 2
    assert told(lambda: running.node.broadcast(submission.tx_bytes)) == ("sdk 19" if taken else "0")
    running.embedded.advance()
    assert [one.code for one in running.included()] == [0]
    assert running.node.find_tx(submission.tx_hash) is not None
    assert running.embedded.record().standing(67, 1, WALLET.address) is Standing.ADMITTED


@pytest.mark.parametrize("rest", [False, True], ids=["grpc", "rest"])
def test_an_endpoint_heals_and_falls_ill_while_it_runs(opened: Opened, rest: bool) -> None:
    running = opened()
    url = running.embedded.add_endpoint(rest=rest)
    with asking(url) as node:
        for _ in range(3):
            assert node.height() == 2
            running.embedded.set_faults([Fault("refuse")], url)
            assert re.search(BROKEN, told(node.height))
            running.embedded.set_faults([Fault("unavailable")], url)
            assert "unavailable" in told(node.height)
            running.embedded.set_faults((), url)
    running.embedded.set_faults([Fault("rate-limit")])
    assert "resource exhausted" in told(running.node.height)
    with pytest.raises(KeyError):
        running.embedded.set_faults((), "grpc+http://127.0.0.1:1")
    with pytest.raises(ValueError, match="of the chain"):
        running.embedded.add_endpoint(parse_faults("late"))
    with pytest.raises(ValueError, match="of an endpoint"):
        running.embedded.inject(Fault("hang"))


def test_an_endpoint_refuses_between_two_heights(opened: Opened) -> None:
    running = opened()
    url = running.embedded.add_endpoint(parse_faults("refuse@from=4@until=5"))
    port = int(url.rpartition(":")[2])
    found = []
    for _ in range(5):
        found.append((running.node.height(), listens(port)))
        running.embedded.advance()
    assert found == [(2, True), (3, True), (4, False), (5, False), (6, True)]


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_flapping_endpoint_is_good_bad_and_good(opened: Opened) -> None:
    running = opened()
    with Node(running.embedded.add_endpoint(parse_faults("flapping=2"))) as node:
        good = [told(node.height) == "2" for _ in range(8)]
    assert good == [True, True, False, False, True, True, False, False]


def test_every_other_request_fails(opened: Opened) -> None:
    running = opened()
    with Node(running.embedded.add_endpoint(parse_faults("unavailable@every=2"))) as node:
        assert [told(node.height) == "2" for _ in range(6)] == [True, False] * 3


def test_chance_with_a_seed_hangs_the_same_requests(opened: Opened) -> None:
    running = opened()
    expected = random.Random(7)
    url = running.embedded.add_endpoint(parse_faults("hang@p=0.3,seed=7"))
    for _ in range(6):
        hangs = expected.random() < 0.3
        with Node(url, deadline=IMPATIENT if hangs else PATIENT) as node:
            assert (told(node.height) == "2") is not hangs


def test_an_answer_that_comes_twice_is_no_answer_of_another_request(opened: Opened) -> None:
    running = opened()
    with Node(running.embedded.add_endpoint([Fault("duplicate")]), deadline=IMPATIENT) as node:
        answers = [told(node.height) for _ in range(3)]
        assert all(answer == "2" or re.search(TIMEOUT, answer) for answer in answers), answers


def test_two_faults_at_once_both_strike(opened: Opened) -> None:
    running = opened()
    submission = running.sign()
    url = running.embedded.add_endpoint(parse_faults("slow=0.01,index-behind=1,lose-answer@first=1"))
    with Node(url, chain_id="localnet") as node:
        assert "unavailable" in told(lambda: node.broadcast(submission.tx_bytes))
        assert told(lambda: node.broadcast(submission.tx_bytes)) == "sdk 19"
        running.embedded.advance()
        assert node.find_tx(submission.tx_hash) is None
        running.embedded.advance()
        found = node.find_tx(submission.tx_hash)
        assert found is not None
        assert found.height == 3


def test_an_old_endpoint_lags_in_everything_it_tells(opened: Opened) -> None:
    running = opened()
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


def test_a_lost_index_finds_nothing_and_a_late_one_by_the_clock(opened: Opened) -> None:
    running = opened()
    submission = running.sign()
    running.node.broadcast(submission.tx_bytes)
    running.embedded.call(lambda chain: chain.seal())
    urls = [
        running.embedded.add_endpoint(parse_faults(text)) for text in ("no-index", "index-late=600", "index-late=0.001")
    ]
    with Node(urls[0]) as never, Node(urls[1]) as late, Node(urls[2]) as soon:
        with pytest.raises(RetryLater, match="indexing is disabled"):
            never.find_tx(submission.tx_hash)
        assert late.find_tx(submission.tx_hash) is None
        assert soon.find_tx(submission.tx_hash) is not None


# The chain's own faults


def test_more_gas_than_simulated_costs_the_fee_and_new_bytes_go_through(opened: Opened) -> None:
    running = opened()
    running.embedded.inject(*parse_faults("out-of-gas=3@first=1"))
    before = running.node.balance(WALLET.address)
    for _ in range(2):
        assert told(lambda: running.node.broadcast(running.sign().tx_bytes)) == "0"
        running.embedded.advance()
    first, second = running.included()
    assert (first.codespace, first.code, second.code) == ("sdk", 11, 0)
    assert first.gas_used > first.gas_wanted
    assert before - running.node.balance(WALLET.address) == first.fee + second.fee + 10
    assert running.embedded.record().paid(WALLET.address) >= first.fee + second.fee


def test_a_price_that_rises_after_it_was_asked_for(opened: Opened) -> None:
    running = opened()
    submission = running.sign()
    running.embedded.inject(*parse_faults("low-fee=20@first=1"))
    before = running.node.gas_price()
    assert told(lambda: running.node.broadcast(submission.tx_bytes)) == "sdk 13"
    after = running.node.gas_price()
    assert before is not None
    assert after == 20 * before
    assert told(lambda: running.node.broadcast(running.sign().tx_bytes)) == "0"


def test_somebody_else_with_the_same_key_is_faster(opened: Opened) -> None:
    running = opened()
    submission = running.sign()
    running.embedded.inject(*parse_faults("sequence@first=1"))
    assert told(lambda: running.node.broadcast(submission.tx_bytes)) == "0"
    running.embedded.advance()
    assert running.included() == ()
    account = running.node.account(WALLET.address)
    assert account is not None
    assert account.sequence == submission.sequence + 1
    assert told(lambda: running.node.broadcast(submission.tx_bytes)) == "sdk 32"
    running.embedded.call(lambda chain: chain.outsider(WALLET.address))
    account = running.node.account(WALLET.address)
    assert account is not None
    assert account.sequence == submission.sequence + 2


def test_a_payload_that_fell_out_of_the_mempool_is_taken_again(opened: Opened) -> None:
    running = opened()
    submission = running.sign()
    running.embedded.inject(*parse_faults("drop-from-mempool@first=1"))
    for expected in ((), (0,)):
        assert told(lambda: running.node.broadcast(submission.tx_bytes)) == "0"
        running.embedded.advance()
        assert tuple(one.code for one in running.included()) == expected


def test_a_late_payload_waits_in_the_mempool(opened: Opened) -> None:
    running = opened()
    submission = running.sign()
    running.embedded.inject(*parse_faults("late=3"))
    running.node.broadcast(submission.tx_bytes)
    running.embedded.advance(3)
    assert running.included() == ()
    assert told(lambda: running.node.broadcast(submission.tx_bytes)) == "sdk 19"
    running.embedded.advance()
    assert [one.height for one in running.included()] == [6]


def test_a_block_takes_what_waits_in_the_reverse_order(opened: Opened) -> None:
    running = opened()
    running.enlist(OTHER)
    running.embedded.inject(*parse_faults("reorder"))
    for wallet in (WALLET, OTHER):
        running.node.broadcast(running.sign(wallet=wallet).tx_bytes)
    running.embedded.advance()
    order = [one.sender for one in running.embedded.record().transactions if one.kind == "payload"]
    assert order == [OTHER.address, WALLET.address]


def test_a_window_that_closes_on_the_way_costs_nothing_where_the_bytes_die_with_it(opened: Opened) -> None:
    running = opened()
    submission = running.sign()
    forever = build_tx(
        OTHER, payload_message(OTHER, version="v10", topic_id=67, nonce=1, value="0.5"), chain_id="localnet",
        account_number=running.embedded.call(lambda chain: chain.account(OTHER.address)).number,  # type: ignore[union-attr]
        sequence=0, gas=200_000, fee_uallo=10**6,
    )  # fmt: skip
    running.embedded.inject(*parse_faults("window-closing"))
    assert told(lambda: running.node.broadcast(submission.tx_bytes)) == "0"
    assert told(lambda: running.node.broadcast(forever)) == "0"
    assert running.embedded.advance() == 11
    assert running.node.open_nonces(67) == []
    assert running.included() == ()
    assert [(one.codespace, one.code) for one in running.included(OTHER)] == [("emissions", 67)]
    assert running.embedded.record().windows(67)[0].closed
    assert told(lambda: running.node.broadcast(submission.tx_bytes)) == "sdk 30"


def test_a_node_that_restarts_loses_its_mempool_and_keeps_its_port(opened: Opened) -> None:
    running = opened()
    port = int(running.embedded.endpoint.rpartition(":")[2])
    submission = running.sign()
    running.embedded.inject(*parse_faults("restart=3600@first=1"))
    assert told(lambda: running.node.broadcast(submission.tx_bytes)) == "0"
    waiting = threading.Event()
    while listens(port):
        waiting.wait(0.01)
    running.embedded.restart(0.01)  # it is down, and now comes back soon
    while not listens(port):
        waiting.wait(0.01)
    running.embedded.advance()
    assert running.included() == ()
    while (answer := told(lambda: running.node.broadcast(submission.tx_bytes))) != "0":
        assert re.search(BROKEN, answer)  # the client's own patience with a port that refused
        waiting.wait(0.05)
    running.embedded.advance()
    assert [one.code for one in running.included()] == [0]


def test_a_chain_is_upgraded_while_it_runs(opened: Opened) -> None:
    import grpc  # type: ignore[import-untyped]  # no stubs

    running = opened(version="v9")
    running.embedded.inject(*parse_faults("upgrade=v10@from=4"))
    old = running.sign()
    assert running.node.version() == "v9"
    running.embedded.advance()
    assert told(lambda: running.node.broadcast(old.tx_bytes)) == "0"
    running.embedded.advance()
    assert running.included() == ()  # written in the version that is gone
    assert running.node.open_nonces(67) == [1]  # asked again, in the new one
    assert running.node.version() == "v10"
    assert told(lambda: running.node.broadcast(old.tx_bytes)) == "sdk 2"
    assert told(lambda: running.node.broadcast(running.sign().tx_bytes)) == "0"
    running.embedded.advance()
    assert [one.code for one in running.included()] == [0]
    with grpc.insecure_channel(running.embedded.endpoint.rpartition("/")[2]) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/emissions.v9.QueryService/GetParams")(b"", timeout=10)
        assert caught.value.details() == "unknown service emissions.v9.QueryService"


# Who counts


def test_with_a_full_set_of_better_workers_code_0_stores_nothing(opened: Opened) -> None:
    running = opened(topics=(TopicSpec(67, 20, 10, active_set=3),))
    running.embedded.inject(*parse_faults("passive@first=1"))
    running.embedded.advance(19)
    assert running.node.open_nonces(67) == [21]
    assert running.node.broadcast(running.sign().tx_bytes).code == 0
    running.embedded.advance()
    assert running.node.broadcast(signed_anyway(running, nonce=21)).code == 0
    running.embedded.advance()
    assert [(one.codespace, one.code) for one in running.included()] == [("", 0), ("emissions", 78)]
    record = running.embedded.record()
    assert record.standing(67, 21, WALLET.address) is Standing.PASSIVE
    assert set(record.active[67, 21]) == {rival(67, number) for number in range(3)}
    assert running.node.latest_inference(67, WALLET.address) is None
    running.embedded.advance(20)
    running.node.broadcast(running.sign().tx_bytes)
    running.embedded.advance()
    assert running.embedded.record().standing(67, 41, WALLET.address) is Standing.ADMITTED


def signed_anyway(running: Running, *, nonce: int) -> bytes:
    """A payload that a simulation would refuse."""
    account = running.node.account(WALLET.address)
    assert account is not None
    return build_tx(
        WALLET, payload_message(WALLET, version="v10", topic_id=67, nonce=nonce, value="0.5"), chain_id="localnet",
        account_number=account.number, sequence=account.sequence, gas=200_000, fee_uallo=10**6,
    )  # fmt: skip


def test_a_better_worker_evicts_the_lowest_and_a_worse_one_is_passive(opened: Opened) -> None:
    running = opened(topics=(TopicSpec(67, 20, 10, active_set=1),))
    third = Wallet(b"\5" * 32)
    for wallet, score in ((OTHER, 2.0), (third, 1.0)):
        running.enlist(wallet)
        running.rate(wallet, score)
    for wallet in (WALLET, OTHER, third):
        running.node.broadcast(running.sign(wallet=wallet).tx_bytes)
        running.embedded.advance()
    record = running.embedded.record()
    found = [record.standing(67, 1, wallet.address) for wallet in (WALLET, OTHER, third)]
    assert found == [Standing.EVICTED, Standing.ADMITTED, Standing.PASSIVE]
    shown = running.node.latest_inference(67, WALLET.address)
    assert shown is not None
    assert shown.nonce == 1  # it was in the set once
    running.embedded.advance(10)
    assert [one.worker for one in running.node.inferences_at(67, 1)] == [OTHER.address]
    assert "already submitted" in str(running.embedded.call(lambda chain: chain.simulate(signed_v10(chain))))


def signed_v10(chain: LocalChain) -> bytes:
    """A second payload for nonce 1 while its window was open, for a simulation."""
    chain.state.height = 5
    message = payload_message(WALLET, version="v10", topic_id=67, nonce=1, value="0.7")
    return build_tx(WALLET, message, chain_id="localnet", account_number=0, sequence=2, gas=200_000, fee_uallo=10**6)


def test_rivals_in_the_last_block_evict_who_was_admitted(opened: Opened) -> None:
    running = opened(topics=(TopicSpec(67, 20, 10, active_set=2),))
    running.embedded.inject(*parse_faults("evicted"))
    running.embedded.advance(19)
    running.node.broadcast(running.sign().tx_bytes)
    running.embedded.advance()
    standings = []
    while not running.embedded.record().windows(67)[-1].closed:
        standings.append(running.embedded.record().standing(67, 21, WALLET.address))
        running.embedded.advance()
    assert standings == [Standing.ADMITTED] * 8 + [Standing.EVICTED]


def test_scores_are_told_and_staying_away_costs(opened: Opened) -> None:
    import grpc

    from forecastd.chain.sdk import emissions

    running = opened()
    running.embedded.call(lambda chain: chain.set_score(67, WALLET.address, 1.0))
    running.node.broadcast(running.sign().tx_bytes)
    running.embedded.advance()
    em = emissions("v10")
    with grpc.insecure_channel(running.embedded.endpoint.rpartition("/")[2]) as channel:

        def asked(name: str, **fields: Any) -> Any:
            request = bytes(getattr(em, f"{name}Request")(**fields))
            raw = channel.unary_unary(f"/emissions.v10.QueryService/{name}")(request, timeout=10)
            return getattr(em, f"{name}Response").parse(raw)

        worst = asked("GetCurrentLowestInfererScore", topic_id=67).score
        assert (worst.address, float(worst.score)) == (WALLET.address, 1.0)
        scores = []
        for _ in range(3):
            running.embedded.advance(20)
            scores.append(float(asked("GetInfererScoreEma", topic_id=67, inferer=WALLET.address).score.score))
        assert scores == pytest.approx([0.9, 0.81, 0.729])
        assert asked("GetParams").params.max_top_inferers_to_reward == 32


# Time, history and the disk


def test_hundreds_of_epochs_are_stepped_through_without_a_race(opened: Opened) -> None:
    running = opened(topics=(TopicSpec(67, 5, 4),))
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
    assert [one.nonce for one in windows] == list(range(1, height + 1001, 5))
    assert all(one.last == one.nonce + 3 for one in windows)
    assert running.embedded.record().windows(67, since=windows[-1].nonce) == (windows[-1],)


class Stopped:
    """A clock that stands still."""

    def now(self) -> float:
        return 1_000_000.0

    def monotonic(self) -> float:
        return 0.0


def test_the_past_is_what_was_seen_then(tmp_path: Path) -> None:
    chance = random.Random(11)
    store = Store(tmp_path / "chain.sqlite")
    topic = TopicSpec(67, 6, 4, active_set=2)
    chain = LocalChain(Rules(topics=(topic,), block_time=None), store, Stopped())
    wallets = [Wallet(bytes([number]) * 32) for number in range(1, 6)]
    for wallet in wallets:
        chain.account(wallet.address)
        chain.set_score(67, wallet.address, chance.random())
    seen = []
    for _ in range(60):
        for wallet in chance.sample(wallets, 2):
            account = chain.account(wallet.address)
            assert account is not None
            nonces = topic.open_nonces(chain.state.height)
            registered = (67, wallet.address) in chain.state.workers
            message = (
                payload_message(wallet, version="v10", topic_id=67, nonce=nonces[0] if nonces else 1, value="0.5")
                if registered
                else register_message(wallet, version="v10", topic_id=67)
            )
            chain.broadcast(build_tx(
                wallet, message, chain_id="localnet", account_number=account.number, sequence=account.sequence,
                gas=chance.choice([80_000, 200_000]), fee_uallo=10**6,
            ))  # fmt: skip
        chain.advance(1)
        seen.append(deepcopy(chain.state))
    assert {record.code for record in chain.state.txs.values()} >= {0, 11}
    for then in seen:
        found = past(chain.state, then.height)
        assert (found.height, found.txs, found.workers) == (then.height, then.txs, then.workers)
        for address, account in then.accounts.items():
            assert (found.accounts[address].sequence, found.accounts[address].balance) == (
                account.sequence, account.balance
            )  # fmt: skip
    store.close()


def test_scores_and_evictions_are_on_disk_and_a_chain_of_old_is_taken_over(tmp_path: Path) -> None:
    with open_embedded(
        tmp_path, SystemClock(), topics=(TopicSpec(67, 20, 10, active_set=1),), block_time=None
    ) as embedded:
        embedded.inject(Fault("evicted"))
        embedded.advance(40)
        before = embedded.record()
        assert before.active
        assert before.scores
    with open_embedded(tmp_path, SystemClock(), block_time=None) as embedded:
        after = embedded.record()
        assert (after.active, after.evicted, after.scores) == (before.active, before.evicted, before.scores)
        assert embedded.call(lambda chain: chain.state.topics[0].active_set) == 1
    path = tmp_path / "localnet" / "localnet.sqlite"
    with sqlite3.connect(path) as db:  # as version 1 had it
        db.execute("DROP TABLE scores")
        db.execute("ALTER TABLE inferences DROP COLUMN evicted")
        db.execute("PRAGMA user_version=1")
    db.close()
    with open_embedded(tmp_path, SystemClock(), block_time=None) as embedded:
        record = embedded.record()
        assert (record.height, record.scores, set(record.active)) == (before.height, {}, set(before.active))
