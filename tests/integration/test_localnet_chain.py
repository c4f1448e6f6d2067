"""The local chain without sockets: what it takes, what it refuses and why, and what it never loses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forecastd.chain.codec import build_tx, payload_message, register_message, simulated_tx
from forecastd.chain.sdk import EmissionsVersion, emissions
from forecastd.chain.wallet import Wallet
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.localnet.chain import MOST_BLOCKS, LocalChain, Rules
from forecastd.localnet.payload import Refusal
from forecastd.localnet.rules import BLOCK_TARGET, lowest_fee, next_gas_price
from forecastd.localnet.state import PRICE_UNIT, Fees
from forecastd.localnet.store import Store, chain_path, delete_chain
from forecastd.localnet.topics import TopicSpec

WALLET, OTHER = Wallet(b"\1" * 32), Wallet(b"\2" * 32)
TOPIC = TopicSpec(67, epoch_length=10, worker_submission_window=4)
GAS, FEE = 200_000, 1_000_000
BEGIN = 200_000  # the height at which a chain of 5 s blocks begins at the clock's time


class Clock:
    """A clock set by hand."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


Open = Callable[..., LocalChain]


@pytest.fixture
def open_chain(tmp_path: Path) -> Iterator[Open]:
    """Open the chain on one state, as often as wanted; opening it again closes it first."""
    stores: list[Store] = []

    def opened(clock: Clock | None = None, **rules: Any) -> LocalChain:
        for store in stores:
            store.close()
        stores.append(Store(tmp_path / "chain.sqlite", wait=0.0))
        given_rules = {"block_time": None, "topics": (TOPIC,), **rules}
        return LocalChain(Rules(**given_rules), stores[-1], clock or Clock())

    yield opened
    for store in stores:
        store.close()


def tx(
    chain: LocalChain,
    message: tuple[str, bytes],
    *,
    wallet: Wallet = WALLET,
    waiting: int = 0,
    **more: Any,
) -> bytes:
    """A transaction that is right in all that `more` does not change."""
    account = chain.account(wallet.address)
    asked = {
        "chain_id": chain.state.chain_id,
        "account_number": account.number if account else 0,
        "sequence": (account.sequence if account else 0) + waiting,
        "gas": GAS,
        "fee_uallo": FEE,
        "timeout_height": 0,
    }
    return build_tx(wallet, message, **{**asked, **more})


def register(chain: LocalChain, wallet: Wallet = WALLET, topic_id: int = 67, **more: Any) -> bytes:
    return tx(chain, register_message(wallet, version=chain.state.version, topic_id=topic_id), wallet=wallet, **more)


def payload(
    chain: LocalChain, *, wallet: Wallet = WALLET, topic_id: int = 67, nonce: int = 1, value: str = "0.5", **more: Any
) -> bytes:
    message = payload_message(wallet, version=chain.state.version, topic_id=topic_id, nonce=nonce, value=value)
    return tx(chain, message, wallet=wallet, **more)


def include(chain: LocalChain, raw: bytes) -> tuple[str, int, str]:
    """Send a transaction that the check must take, make a block, and tell what the block made of it."""
    answer = chain.broadcast(raw)
    assert answer.code == 0, answer
    record = next(one for one in chain.seal().records if one.tx_hash == answer.tx_hash)
    return record.codespace, record.code, record.log


def check(chain: LocalChain, raw: bytes) -> tuple[str, int]:
    answer = chain.broadcast(raw)
    return answer.codespace, answer.code


def ready(open_chain: Open, **rules: Any) -> LocalChain:
    """A chain with the worker registered and nonce 1 open for its last two blocks."""
    chain = open_chain(**rules)
    assert include(chain, register(chain)) == ("", 0, "")
    assert chain.state.height == 2
    return chain


def wealth(chain: LocalChain) -> int:
    return sum(account.balance for account in chain.state.accounts.values()) + chain.state.burnt


@pytest.mark.parametrize("version", ["v9", "v10"])
def test_a_registered_workers_payload_is_taken_once(open_chain: Open, version: EmissionsVersion) -> None:
    chain = ready(open_chain, version=version)
    assert include(chain, payload(chain)) == ("", 0, "")
    assert chain.state.latest[67, WALLET.address].value == "0.5"
    codespace, code, log = include(chain, payload(chain, value="0.6"))
    assert (codespace, code) == ("undefined", 1)
    assert "inference already submitted" in log
    assert chain.state.latest[67, WALLET.address].value == "0.5"
    assert [one.code for one in chain.state.inclusions(67, 1, WALLET.address)] == [0, 1]
    assert chain.state.burnt == 3 * FEE + chain.state.fees.registration + chain.state.fees.data_sending
    assert chain.state.accounts[WALLET.address].sequence == 3


def test_what_a_block_would_not_take_is_refused_at_the_door_in_the_chains_order(open_chain: Open) -> None:
    chain = ready(open_chain)
    good = payload_message(WALLET, version="v10", topic_id=67, nonce=1, value="0.5")
    cases: list[tuple[bytes, tuple[str, int]]] = [
        (b"\xff\xff", ("sdk", 2)),
        (tx(chain, ("/cosmos.bank.v1beta1.MsgSend", b"")), ("sdk", 2)),
        (tx(chain, payload_message(WALLET, version="v9", topic_id=67, nonce=1, value="0.5")), ("sdk", 2)),
        (simulated_tx(WALLET, good, sequence=1), ("sdk", 11)),
        (tx(chain, good, timeout_height=2), ("sdk", 30)),
        (tx(chain, good, gas=10), ("sdk", 11)),
        (tx(chain, good, fee_uallo=GAS - 1), ("sdk", 13)),
        (tx(chain, good, fee_uallo=10**30), ("sdk", 5)),
        (tx(chain, good, wallet=OTHER), ("sdk", 8)),
        (tx(chain, good, sequence=0), ("sdk", 32)),
        (tx(chain, good, sequence=9), ("sdk", 32)),
        (tx(chain, good, chain_id="allora-testnet-1"), ("sdk", 4)),
        (tx(chain, good, account_number=5), ("sdk", 4)),
    ]
    before = dict(chain.state.accounts)
    assert [check(chain, raw) for raw, _ in cases] == [expected for _, expected in cases]
    assert {address: chain.state.accounts[address] for address in before} == before
    assert chain.waiting == 0


def test_a_sequence_mismatch_says_what_was_expected(open_chain: Open) -> None:
    chain = ready(open_chain)
    assert "account sequence mismatch, expected 1, got 4" in chain.broadcast(payload(chain, sequence=4)).log


def forged(chain: LocalChain, change: Callable[[Any], None], *, resign: bool = True) -> bytes:
    """A payload with something changed in it; the outer signature is right, the inner too unless not `resign`ed."""
    url, content = payload_message(WALLET, version=chain.state.version, topic_id=67, nonce=1, value="0.5")
    request = emissions(chain.state.version).InsertWorkerPayloadRequest.parse(content)
    change(request)
    data = request.worker_data_bundle
    if resign and data is not None and data.inference_forecasts_bundle is not None:
        data.inferences_forecasts_bundle_signature = WALLET.sign(bytes(data.inference_forecasts_bundle))
    return tx(chain, (url, bytes(request)))


def inference(request: Any) -> Any:
    return request.worker_data_bundle.inference_forecasts_bundle.inference


def put(path: str, value: Any) -> Callable[[Any], None]:
    """Set a field of the request, of its bundle, or of the inference within."""

    def change(request: Any) -> None:
        where, _, name = path.rpartition(".")
        owner = {"": request, "bundle": request.worker_data_bundle, "inference": inference(request)}[where]
        setattr(owner, name, value)

    return change


FORGERIES: list[tuple[str, Callable[[Any], None], bool, tuple[str, int]]] = [
    ("no bundle", put("worker_data_bundle", None), True, ("sdk", 7)),
    ("no nonce", put("bundle.nonce", None), True, ("sdk", 18)),
    ("no inner bundle", put("bundle.inference_forecasts_bundle", None), True, ("sdk", 18)),
    ("a key that is none", put("bundle.pubkey", "zz"), True, ("sdk", 18)),
    ("another's key", put("bundle.pubkey", OTHER.public_key.hex()), True, ("sdk", 4)),
    ("another worker", put("bundle.worker", OTHER.address), True, ("sdk", 4)),
    ("a worker that is no address", put("bundle.worker", "allo1x"), True, ("sdk", 7)),
    ("another inferer", put("inference.inferer", OTHER.address), True, ("sdk", 4)),
    ("another topic inside", put("inference.topic_id", 68), True, ("emissions", 6)),
    ("another nonce inside", put("inference.block_height", 2), True, ("sdk", 18)),
    ("a changed value", lambda request: setattr(inference(request).values[0], "value", "0.6"), False, ("sdk", 4)),
    ("no signature", put("bundle.inferences_forecasts_bundle_signature", b""), False, ("sdk", 4)),
    ("a decimal not written as the chain writes it", put("inference.value", "1e-07"), True, ("sdk", 4)),
    ("not a number", put("inference.value", "NaN"), True, ("sdk", 18)),
    ("no value", put("inference.values", []), True, ("sdk", 18)),
    ("another label", lambda request: setattr(inference(request).values[0], "label", "z"), True, ("sdk", 18)),
]


@pytest.mark.parametrize(
    ("change", "resign", "expected"), [one[1:] for one in FORGERIES], ids=[one[0] for one in FORGERIES]
)
def test_a_payload_that_is_not_what_it_claims_is_refused_and_still_pays(
    open_chain: Open, change: Callable[[Any], None], resign: bool, expected: tuple[str, int]
) -> None:
    chain = ready(open_chain)
    account = chain.state.accounts[WALLET.address]
    raw = forged(chain, change, resign=resign)
    simulated = chain.simulate(raw)
    assert include(chain, raw)[:2] == expected
    assert isinstance(simulated, Refusal)
    assert (simulated.codespace, simulated.code) == expected
    paid = chain.state.accounts[WALLET.address]
    assert (paid.balance, paid.sequence) == (account.balance - FEE, account.sequence + 1)
    assert not chain.state.inferences


def test_a_payload_of_v9_is_known_by_its_plain_value(open_chain: Open) -> None:
    chain = ready(open_chain, version="v9")
    assert include(chain, forged(chain, put("inference.value", "1e-07")))[:2] == ("sdk", 4)
    assert include(chain, forged(chain, put("inference.value", "1E-7")))[:2] == ("", 0)
    assert chain.state.latest[67, WALLET.address].value == "1E-7"


def test_the_window_is_kept_to_the_block(open_chain: Open) -> None:
    """Nonce 1 with a window of 4: blocks 2, 3 and 4 take it, 5 says too late, later ones know no such nonce."""
    chain = open_chain(topics=(TOPIC, TopicSpec(42)))
    for wallet in (WALLET, OTHER):
        chain.state.workers.add((67, wallet.address))
    outcomes = []
    for height in range(2, 8):
        fresh = Wallet(bytes([height]) * 32)
        chain.account(fresh.address)
        chain.state.workers.add((67, fresh.address))
        outcomes.append((height, include(chain, payload(chain, wallet=fresh))[:2]))
    good, late, gone = ("", 0), ("emissions", 67), ("emissions", 75)
    assert outcomes == [(2, good), (3, good), (4, good), (5, late), (6, gone), (7, gone)]
    assert include(chain, payload(chain, nonce=2))[:2] == gone
    assert include(chain, payload(chain, nonce=11))[:2] == gone


def test_topics_registration_and_permission_are_asked_in_order(open_chain: Open) -> None:
    listed = replace(TOPIC, id=5, workers=(OTHER.address,))
    chain = open_chain(topics=(TOPIC, listed))
    assert include(chain, payload(chain, topic_id=99))[:2] == ("emissions", 6)
    assert include(chain, register(chain, topic_id=99))[:2] == ("emissions", 6)
    codespace, _, log = include(chain, payload(chain, topic_id=5))
    assert "not permitted to submit payload" in log
    assert codespace != "sdk"
    chain = open_chain(topics=(replace(TOPIC, worker_submission_window=10),))
    assert include(chain, payload(chain))[:2] == ("emissions", 13)


def test_out_of_gas_on_the_way_pays_and_uses_up_the_sequence(open_chain: Open) -> None:
    chain = ready(open_chain)
    needed = chain.simulate(payload(chain))
    assert isinstance(needed, int)
    assert include(chain, payload(chain, gas=needed - 2_000))[:2] == ("sdk", 11)
    assert not chain.state.inferences
    assert chain.state.accounts[WALLET.address].sequence == 2
    assert include(chain, payload(chain, gas=needed + 2_000))[:2] == ("", 0)


def test_the_mempool_knows_its_own_and_what_was_included(open_chain: Open) -> None:
    chain = ready(open_chain, mempool=2)
    first = payload(chain)
    assert [check(chain, raw) for raw in (first, first)] == [("", 0), ("sdk", 19)]
    assert check(chain, payload(chain, value="0.7", sequence=1)) == ("sdk", 32)
    assert check(chain, payload(chain, value="0.7", waiting=1)) == ("", 0)
    assert check(chain, payload(chain, value="0.8", waiting=2)) == ("sdk", 20)
    assert [one.code for one in chain.seal().records] == [0, 1]
    assert check(chain, first) == ("sdk", 19)
    again = open_chain()
    assert check(again, first) == ("sdk", 32)  # a node that restarted has forgotten what it included


def test_what_waits_too_long_is_dropped_and_changes_nothing(open_chain: Open) -> None:
    chain = ready(open_chain)
    late = payload(chain, timeout_height=3)
    early = payload(chain, timeout_height=4)
    assert check(chain, late) == ("", 0)
    before = chain.state.accounts[WALLET.address]
    chain.state.height = 3  # a block that did not take it
    assert chain.seal().records == ()
    assert chain.state.accounts[WALLET.address] == before
    assert check(chain, early) == ("sdk", 30)


def test_without_a_faucet_nobody_has_anything(open_chain: Open) -> None:
    chain = open_chain(faucet=False)
    assert chain.account(WALLET.address) is None
    assert check(chain, register(chain)) == ("sdk", 9)
    assert isinstance(chain.simulate(register(chain)), Refusal)
    chain.fund(WALLET.address, FEE + 1)
    assert include(chain, register(chain))[:2] == ("sdk", 5)
    assert wealth(chain) == chain.state.minted == FEE + 1


def test_everything_survives_a_restart(open_chain: Open) -> None:
    chain = ready(open_chain)
    include(chain, payload(chain))
    include(chain, payload(chain, value="0.6"))
    before = chain.state
    after = open_chain().state
    assert after == before


def test_a_block_that_cannot_be_written_has_not_happened(open_chain: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = ready(open_chain)
    before = deepcopy(chain.state)
    assert check(chain, payload(chain)) == ("", 0)

    def full(*_: object) -> None:
        raise RetryLater("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", full)
        with pytest.raises(RetryLater):
            chain.seal()
    assert chain.state == before
    assert include(chain, payload(chain)) == ("", 0, "")


def test_heights_follow_the_clock_also_while_nothing_runs(open_chain: Open) -> None:
    clock = Clock()
    chain = open_chain(clock, block_time=5.0)
    heights = []
    for seconds in (4.9, 0.2, 5.0, 20.0):
        clock.time += seconds
        chain.tick()
        heights.append(chain.state.height)
    assert heights == [BEGIN, BEGIN + 1, BEGIN + 2, BEGIN + 6]
    clock.time += 3600 * 24 * 90
    chain = open_chain(clock, block_time=5.0)
    assert chain.state.height == BEGIN + 6 + 720 * 24 * 90
    assert chain.due_in() == pytest.approx(4.9)


def test_after_a_long_sleep_the_blocks_that_are_missing_are_skipped_over(open_chain: Open) -> None:
    clock = Clock()
    chain = open_chain(clock, block_time=5.0)
    made: list[int] = []
    chain.listeners.append(lambda block: made.append(block.height))
    assert check(chain, register(chain)) == ("", 0)
    clock.time += 5.0 * 10_000
    chain.tick()
    assert chain.state.height == BEGIN + 10_000
    assert made == list(range(BEGIN + 1, BEGIN + 1 + MOST_BLOCKS))
    assert (67, WALLET.address) in chain.state.workers


def test_a_clock_that_is_set_back_does_not_stop_the_chain(open_chain: Open) -> None:
    clock = Clock()
    chain = open_chain(clock, block_time=5.0)
    clock.time -= 86_400
    chain.tick()
    clock.time += 5.0
    chain.tick()
    assert chain.state.height == BEGIN + 1


def test_a_clock_that_stands_still_does_not_keep_transactions_waiting(open_chain: Open) -> None:
    chain = open_chain(block_time=5.0)
    assert include(chain, register(chain)) == ("", 0, "")
    assert include(chain, payload(chain, nonce=BEGIN)) == ("", 0, "")
    assert chain.state.time == Clock().now()


def test_a_chain_that_was_deleted_never_issues_its_nonces_again(tmp_path: Path) -> None:
    """A ledger that outlives the chain would take them for served."""
    clock, nonces = Clock(), []
    for _ in range(3):
        store = Store(tmp_path / "localnet" / "localnet.sqlite")
        chain = LocalChain(Rules(), store, clock)
        nonces.append(chain.state.topics[0].open_nonces(chain.state.height)[0])
        store.close()
        assert delete_chain(tmp_path, "localnet")
        clock.time += 3600.0
    assert nonces == [199_440, 200_160, 200_880]  # multiples of 720: on the hour


def test_blocks_tell_which_windows_open_and_close(open_chain: Open) -> None:
    chain = open_chain()
    told: list[tuple[int, list[int], list[int]]] = []
    chain.listeners.append(
        lambda block: told.append(
            (block.height, [nonce for _, nonce in block.opened], [nonce for _, nonce in block.closed])
        )
    )
    chain.advance(20)
    assert [one for one in told if one[1] or one[2]] == [(5, [], [1]), (11, [11], []), (15, [], [11]), (21, [21], [])]


def test_another_version_is_spoken_from_the_next_transaction_on(open_chain: Open) -> None:
    chain = ready(open_chain, version="v9")
    chain.configure(replace(chain.rules, version="v10"))
    old = payload_message(WALLET, version="v9", topic_id=67, nonce=1, value="0.5")
    assert check(chain, tx(chain, old)) == ("sdk", 2)
    assert include(chain, payload(chain)) == ("", 0, "")


def test_a_topic_that_is_new_to_a_running_chain_opens_at_once(open_chain: Open) -> None:
    chain = open_chain()
    chain.advance(7)
    chain = open_chain(topics=(TOPIC, replace(TOPIC, id=8)))
    found = chain.state.topic(8)
    assert found is not None
    assert found.open_nonces(chain.state.height) == [8]
    assert chain.state.topic(67) == TOPIC
    assert [topic.id for topic in open_chain(topics=None).state.topics] == [67, 8]


@given(st.lists(st.integers(0, 3 * BLOCK_TARGET), max_size=60))
def test_the_gas_price_rises_with_full_blocks_and_never_sinks_below_its_floor(used: list[int]) -> None:
    price = PRICE_UNIT
    for gas in used:
        after = next_gas_price(price, gas, PRICE_UNIT)
        assert after >= PRICE_UNIT
        assert (after > price) is (gas > BLOCK_TARGET)
        price = after
    assert lowest_fee(1, price) * PRICE_UNIT >= price


ACTIONS = st.one_of(
    st.tuples(st.just("register"), st.integers(0, 2), st.integers(-1, 1)),
    st.tuples(st.just("payload"), st.integers(0, 2), st.integers(-1, 1)),
    st.tuples(st.just("poor"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("seal"), st.integers(1, 4), st.just(0)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ACTIONS, max_size=30))
def test_whatever_is_sent_nothing_is_lost_or_counted_twice(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("chain") / "chain.sqlite"
    wallets = [Wallet(bytes([number]) * 32) for number in (1, 2, 3)]
    rules = Rules(block_time=None, topics=(TOPIC,), fees=Fees(registration=7, data_sending=3))
    store = Store(path)
    chain = LocalChain(rules, store, Clock())
    for kind, number, off in actions:
        wallet = wallets[number % 3]
        newest = TOPIC.newest_nonce(chain.state.height) or 1
        waiting = sum(one.sender == wallet.address for one in chain._mempool.values()) + off
        if kind == "register":
            chain.broadcast(register(chain, wallet, waiting=max(waiting, 0)))
        elif kind == "payload":
            chain.broadcast(payload(chain, wallet=wallet, nonce=newest, waiting=max(waiting, 0)))
        elif kind == "poor":
            chain.broadcast(payload(chain, wallet=wallet, nonce=newest, waiting=max(waiting, 0), gas=90_000))
        elif kind == "seal":
            chain.advance(number)
        else:
            store.close()
            store = Store(path)
            chain = LocalChain(rules, store, Clock())
        assert wealth(chain) == chain.state.minted
    chain.advance(1)
    store.close()
    records = list(chain.state.txs.values())
    for account in chain.state.accounts.values():
        assert account.sequence == sum(one.sender == account.address for one in records)
        assert account.balance >= 0
    good = [(one.topic_id, one.nonce, one.sender) for one in records if one.kind == "payload" and one.code == 0]
    assert len(good) == len(set(good))
    assert {(topic, nonce, who) for (topic, nonce), by in chain.state.inferences.items() for who in by} == set(good)


def test_a_second_node_on_the_same_state_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "chain.sqlite")
    with pytest.raises(RetryLater, match="Another local node"):
        Store(tmp_path / "chain.sqlite", wait=0.0)
    store.close()
    Store(tmp_path / "chain.sqlite", wait=0.0).close()


def test_a_damaged_state_is_told_and_can_be_deleted(tmp_path: Path) -> None:
    path = chain_path(tmp_path, "localnet")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(NeedsHuman, match="--reset"):
        Store(path)
    assert delete_chain(tmp_path, "localnet")
    assert not delete_chain(tmp_path, "localnet")
    Store(path).close()


def test_a_chain_id_is_no_way_out_of_the_state_directory(tmp_path: Path) -> None:
    for name in ("", "../x", "a/b", "a.b", "a\0b"):
        with pytest.raises(ValueError, match="chain id"):
            chain_path(tmp_path, name)


def test_a_message_of_another_signer_is_not_taken(open_chain: Open) -> None:
    chain = ready(open_chain)
    assert check(chain, tx(chain, register_message(OTHER, version="v10", topic_id=67))) == ("sdk", 8)
