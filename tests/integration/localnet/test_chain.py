"""The local chain without sockets: what it accepts, what it refuses and why, and what it never loses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forecastd.chain.codec import TxParameters, build_tx, payload_message, register_message, unsigned_tx
from forecastd.chain.methods import EmissionsVersion
from forecastd.chain.proto.emissions_pb2 import InsertWorkerPayloadRequest
from forecastd.chain.wallet import Wallet
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.localnet.chain import MAX_CATCH_UP_BLOCKS, ChainConfig, LocalChain
from forecastd.localnet.payload import TxRefusal
from forecastd.localnet.rules import BLOCK_GAS_TARGET, min_fee, next_gas_price
from forecastd.localnet.state import PRICE_UNIT, Fees
from forecastd.localnet.store import ChainStore, chain_path, delete_chain
from forecastd.localnet.topics import TopicSpec
from forecastd.testing import ManualClock

WALLET, OTHER = Wallet(b"\1" * 32), Wallet(b"\2" * 32)
TOPIC = TopicSpec(67, epoch_length=10, worker_submission_window=4)
GAS, FEE = 200_000, 1_000_000
FIRST_HEIGHT = 200_000  # the first height of a chain with 5 s blocks, from the time of the clock


Open = Callable[..., LocalChain]


@pytest.fixture
def open_chain(tmp_path: Path) -> Iterator[Open]:
    """Opens the chain on one state. Opening it again closes it first."""
    stores: list[ChainStore] = []

    def open_again(clock: ManualClock | None = None, **settings: Any) -> LocalChain:
        for store in stores:
            store.close()
        stores.append(ChainStore(tmp_path / "chain.sqlite", timeout_seconds=0.0))
        options = {"block_time": None, "topics": (TOPIC,), **settings}
        return LocalChain(ChainConfig(**options), stores[-1], clock or ManualClock(1_000_000.0))

    yield open_again
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
    """A transaction that is valid except for the changes in `more`."""
    account = chain.account(wallet.address)
    fields = {
        "account_number": account.number if account else 0,
        "sequence": (account.sequence if account else 0) + waiting,
        "gas": GAS,
        "fee_uallo": FEE,
    }
    changes = {name: more.pop(name) for name in fields if name in more}
    return build_tx(wallet, message, TxParameters(**fields | changes), **{"chain_id": chain.state.chain_id, **more})


def register(chain: LocalChain, wallet: Wallet = WALLET, topic_id: int = 67, **more: Any) -> bytes:
    return tx(chain, register_message(wallet, version=chain.state.version, topic_id=topic_id), wallet=wallet, **more)


def payload(
    chain: LocalChain, *, wallet: Wallet = WALLET, topic_id: int = 67, nonce: int = 1, value: str = "0.5", **more: Any
) -> bytes:
    message = payload_message(wallet, version=chain.state.version, topic_id=topic_id, nonce=nonce, value=value)
    return tx(chain, message, wallet=wallet, **more)


def include(chain: LocalChain, raw: bytes) -> tuple[str, int, str]:
    """Send a transaction that must pass the check, make a block, and return the result in the block."""
    answer = chain.broadcast(raw)
    assert answer.code == 0, answer
    record = next(tx_record for tx_record in chain.seal().records if tx_record.tx_hash == answer.tx_hash)
    return record.codespace, record.code, record.log


def broadcast_code(chain: LocalChain, raw: bytes) -> tuple[str, int]:
    answer = chain.broadcast(raw)
    return answer.codespace, answer.code


def registered_chain(open_chain: Open, **settings: Any) -> LocalChain:
    """A chain with the worker registered and nonce 1 open for its last two blocks."""
    chain = open_chain(**settings)
    assert include(chain, register(chain)) == ("", 0, "")
    assert chain.state.height == 2
    return chain


def total_uallo(chain: LocalChain) -> int:
    return sum(account.balance for account in chain.state.accounts.values()) + chain.state.burnt


@pytest.mark.parametrize("version", ["v9", "v10"])
def test_chain_accepts_a_registered_workers_payload_once(open_chain: Open, version: EmissionsVersion) -> None:
    chain = registered_chain(open_chain, version=version)
    assert include(chain, payload(chain)) == ("", 0, "")
    assert chain.state.latest_inferences[67, WALLET.address].value == "0.5"
    codespace, code, log = include(chain, payload(chain, value="0.6"))
    assert (codespace, code) == ("undefined", 1)
    assert "inference already submitted" in log
    assert chain.state.latest_inferences[67, WALLET.address].value == "0.5"
    assert [tx_record.code for tx_record in chain.state.inclusions(67, 1, WALLET.address)] == [0, 1]
    assert chain.state.burnt == 3 * FEE + chain.state.fees.registration + chain.state.fees.data_sending
    assert chain.state.accounts[WALLET.address].sequence == 3


def test_broadcast_invalid_tx_is_refused_in_chain_order(open_chain: Open) -> None:
    chain = registered_chain(open_chain)
    good = payload_message(WALLET, version="v10", topic_id=67, nonce=1, value="0.5")
    cases: list[tuple[bytes, tuple[str, int]]] = [
        (b"\xff\xff", ("sdk", 2)),
        (tx(chain, ("/cosmos.bank.v1beta1.MsgSend", b"")), ("sdk", 2)),
        (tx(chain, payload_message(WALLET, version="v9", topic_id=67, nonce=1, value="0.5")), ("sdk", 2)),
        (unsigned_tx(WALLET, good, sequence=1), ("sdk", 11)),
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
    assert [broadcast_code(chain, raw) for raw, _ in cases] == [expected for _, expected in cases]
    assert {address: chain.state.accounts[address] for address in before} == before
    assert chain.pending_count == 0


def test_broadcast_sequence_mismatch_names_the_expected_one(open_chain: Open) -> None:
    chain = registered_chain(open_chain)
    assert "account sequence mismatch, expected 1, got 4" in chain.broadcast(payload(chain, sequence=4)).log


def forge_payload(chain: LocalChain, change: Callable[[Any], None], *, resign: bool = True) -> bytes:
    """A payload with one change. The outer signature is valid; the inner one too, unless `resign` is false."""
    url, content = payload_message(WALLET, version=chain.state.version, topic_id=67, nonce=1, value="0.5")
    request = InsertWorkerPayloadRequest.FromString(content)
    change(request)
    data = request.worker_data_bundle
    if resign and data.HasField("inference_forecasts_bundle"):
        inner = data.inference_forecasts_bundle.SerializeToString()
        data.inferences_forecasts_bundle_signature = WALLET.sign(inner)
    return tx(chain, (url, request.SerializeToString()))


def inference(request: Any) -> Any:
    return request.worker_data_bundle.inference_forecasts_bundle.inference


def set_field(path: str, value: Any) -> Callable[[Any], None]:
    """Set a field of the request, of its bundle, or of the inference in it. None clears it."""

    def change(request: Any) -> None:
        where, _, name = path.rpartition(".")
        owner = {"": request, "bundle": request.worker_data_bundle, "inference": inference(request)}[where]
        if value is None:
            owner.ClearField(name)
        else:
            setattr(owner, name, value)

    return change


FORGERIES: list[tuple[str, Callable[[Any], None], bool, tuple[str, int]]] = [
    ("no bundle", set_field("worker_data_bundle", None), True, ("sdk", 7)),
    ("no nonce", set_field("bundle.nonce", None), True, ("sdk", 18)),
    ("no inner bundle", set_field("bundle.inference_forecasts_bundle", None), True, ("sdk", 18)),
    ("invalid key", set_field("bundle.pubkey", "zz"), True, ("sdk", 18)),
    ("another's key", set_field("bundle.pubkey", OTHER.public_key.hex()), True, ("sdk", 4)),
    ("another worker", set_field("bundle.worker", OTHER.address), True, ("sdk", 4)),
    ("invalid worker address", set_field("bundle.worker", "allo1x"), True, ("sdk", 7)),
    ("another inferer", set_field("inference.inferer", OTHER.address), True, ("sdk", 4)),
    ("another topic inside", set_field("inference.topic_id", 68), True, ("emissions", 6)),
    ("another nonce inside", set_field("inference.block_height", 2), True, ("sdk", 18)),
    ("a changed value", lambda request: setattr(inference(request).values[0], "value", "0.6"), False, ("sdk", 4)),
    ("no signature", set_field("bundle.inferences_forecasts_bundle_signature", b""), False, ("sdk", 4)),
    ("decimal not canonical", set_field("inference.value", "1e-07"), True, ("sdk", 4)),
    ("not a number", set_field("inference.value", "NaN"), True, ("sdk", 18)),
    ("no value", set_field("inference.values", None), True, ("sdk", 18)),
    ("another label", lambda request: setattr(inference(request).values[0], "label", "z"), True, ("sdk", 18)),
]


@pytest.mark.parametrize(
    ("change", "resign", "expected"),
    [forgery[1:] for forgery in FORGERIES],
    ids=[forgery[0] for forgery in FORGERIES],
)
def test_payload_forged_is_refused_and_pays_its_fee(
    open_chain: Open, change: Callable[[Any], None], resign: bool, expected: tuple[str, int]
) -> None:
    chain = registered_chain(open_chain)
    account = chain.state.accounts[WALLET.address]
    raw = forge_payload(chain, change, resign=resign)
    simulated = chain.simulate(raw)
    assert include(chain, raw)[:2] == expected
    assert isinstance(simulated, TxRefusal)
    assert (simulated.codespace, simulated.code) == expected
    after = chain.state.accounts[WALLET.address]
    assert (after.balance, after.sequence) == (account.balance - FEE, account.sequence + 1)
    assert not chain.state.inferences


def test_payload_v9_carries_a_plain_value(open_chain: Open) -> None:
    chain = registered_chain(open_chain, version="v9")
    assert include(chain, forge_payload(chain, set_field("inference.value", "1e-07")))[:2] == ("sdk", 4)
    assert include(chain, forge_payload(chain, set_field("inference.value", "1E-7")))[:2] == ("", 0)
    assert chain.state.latest_inferences[67, WALLET.address].value == "1E-7"


def test_window_bounds_are_exact_to_the_block(open_chain: Open) -> None:
    """Nonce 1 with a window of 4: blocks 2, 3 and 4 accept it; block 5 is too late; later blocks do not know the
    nonce.
    """
    chain = open_chain(topics=(TOPIC, TopicSpec(42)))
    for wallet in (WALLET, OTHER):
        chain.state.workers.add((67, wallet.address))
    outcomes = []
    for height in range(2, 8):
        fresh = Wallet(bytes([height]) * 32)
        chain.account(fresh.address)
        chain.state.workers.add((67, fresh.address))
        outcomes.append((height, include(chain, payload(chain, wallet=fresh))[:2]))
    good, expired, gone = ("", 0), ("emissions", 67), ("emissions", 75)
    assert outcomes == [(2, good), (3, good), (4, good), (5, expired), (6, gone), (7, gone)]
    assert include(chain, payload(chain, nonce=2))[:2] == gone
    assert include(chain, payload(chain, nonce=11))[:2] == gone


def test_payload_checks_topic_registration_and_permission_in_order(open_chain: Open) -> None:
    listed = replace(TOPIC, id=5, workers=(OTHER.address,))
    chain = open_chain(topics=(TOPIC, listed))
    assert include(chain, payload(chain, topic_id=99))[:2] == ("emissions", 6)
    assert include(chain, register(chain, topic_id=99))[:2] == ("emissions", 6)
    codespace, _, log = include(chain, payload(chain, topic_id=5))
    assert "not permitted to submit payload" in log
    assert codespace != "sdk"
    chain = open_chain(topics=(replace(TOPIC, worker_submission_window=10),))
    assert include(chain, payload(chain))[:2] == ("emissions", 13)


def test_payload_out_of_gas_pays_and_uses_the_sequence(open_chain: Open) -> None:
    chain = registered_chain(open_chain)
    needed = chain.simulate(payload(chain))
    assert isinstance(needed, int)
    assert include(chain, payload(chain, gas=needed - 2_000))[:2] == ("sdk", 11)
    assert not chain.state.inferences
    assert chain.state.accounts[WALLET.address].sequence == 2
    assert include(chain, payload(chain, gas=needed + 2_000))[:2] == ("", 0)


def test_mempool_refuses_pending_and_included_transactions(open_chain: Open) -> None:
    chain = registered_chain(open_chain, mempool_size=2)
    first = payload(chain)
    assert [broadcast_code(chain, raw) for raw in (first, first)] == [("", 0), ("sdk", 19)]
    assert broadcast_code(chain, payload(chain, value="0.7", sequence=1)) == ("sdk", 32)
    assert broadcast_code(chain, payload(chain, value="0.7", waiting=1)) == ("", 0)
    assert broadcast_code(chain, payload(chain, value="0.8", waiting=2)) == ("sdk", 20)
    assert [tx_record.code for tx_record in chain.seal().records] == [0, 1]
    assert broadcast_code(chain, first) == ("sdk", 19)
    second_answer = open_chain()
    assert broadcast_code(second_answer, first) == ("sdk", 32)  # a node that restarted has lost its cache of hashes


def test_mempool_expired_tx_is_dropped_without_effect(open_chain: Open) -> None:
    chain = registered_chain(open_chain)
    expired = payload(chain, timeout_height=3)
    early = payload(chain, timeout_height=4)
    assert broadcast_code(chain, expired) == ("", 0)
    before = chain.state.accounts[WALLET.address]
    chain.state.height = 3  # a block that did not include it
    assert chain.seal().records == ()
    assert chain.state.accounts[WALLET.address] == before
    assert broadcast_code(chain, early) == ("sdk", 30)


def test_chain_without_faucet_has_no_accounts(open_chain: Open) -> None:
    chain = open_chain(faucet=False)
    assert chain.account(WALLET.address) is None
    assert broadcast_code(chain, register(chain)) == ("sdk", 9)
    assert isinstance(chain.simulate(register(chain)), TxRefusal)
    chain.fund(WALLET.address, FEE + 1)
    assert include(chain, register(chain))[:2] == ("sdk", 5)
    assert total_uallo(chain) == chain.state.minted == FEE + 1


def test_chain_restart_keeps_all_state(open_chain: Open) -> None:
    chain = registered_chain(open_chain)
    include(chain, payload(chain))
    include(chain, payload(chain, value="0.6"))
    before = chain.state
    after = open_chain().state
    assert after == before


def test_block_write_failure_rolls_back(open_chain: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = registered_chain(open_chain)
    before = deepcopy(chain.state)
    assert broadcast_code(chain, payload(chain)) == ("", 0)

    def full(*_: object) -> None:
        raise RetryLater("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(ChainStore, "save", full)
        with pytest.raises(RetryLater):
            chain.seal()
    assert chain.state == before
    assert include(chain, payload(chain)) == ("", 0, "")


def test_height_follows_the_clock_across_downtime(open_chain: Open) -> None:
    clock = ManualClock(1_000_000.0)
    chain = open_chain(clock, block_time=5.0)
    heights = []
    for seconds in (4.9, 0.2, 5.0, 20.0):
        clock.wall += seconds
        chain.tick()
        heights.append(chain.state.height)
    assert heights == [FIRST_HEIGHT, FIRST_HEIGHT + 1, FIRST_HEIGHT + 2, FIRST_HEIGHT + 6]
    clock.wall += 3600 * 24 * 90
    chain = open_chain(clock, block_time=5.0)
    assert chain.state.height == FIRST_HEIGHT + 6 + 720 * 24 * 90
    assert chain.seconds_to_next_block() == pytest.approx(4.9)


def test_tick_after_a_long_pause_skips_missing_blocks(open_chain: Open) -> None:
    clock = ManualClock(1_000_000.0)
    chain = open_chain(clock, block_time=5.0)
    blocks: list[int] = []
    chain.listeners.append(lambda block: blocks.append(block.height))
    assert broadcast_code(chain, register(chain)) == ("", 0)
    clock.wall += 5.0 * 10_000
    chain.tick()
    assert chain.state.height == FIRST_HEIGHT + 10_000
    assert blocks == list(range(FIRST_HEIGHT + 1, FIRST_HEIGHT + 1 + MAX_CATCH_UP_BLOCKS))
    assert (67, WALLET.address) in chain.state.workers


def test_tick_after_clock_set_back_continues(open_chain: Open) -> None:
    clock = ManualClock(1_000_000.0)
    chain = open_chain(clock, block_time=5.0)
    clock.wall -= 86_400
    chain.tick()
    clock.wall += 5.0
    chain.tick()
    assert chain.state.height == FIRST_HEIGHT + 1


def test_seal_with_a_stopped_clock_includes_transactions(open_chain: Open) -> None:
    chain = open_chain(block_time=5.0)
    assert include(chain, register(chain)) == ("", 0, "")
    assert include(chain, payload(chain, nonce=FIRST_HEIGHT)) == ("", 0, "")
    assert chain.state.time == ManualClock(1_000_000.0).now()


def test_deleted_chain_never_reissues_nonces(tmp_path: Path) -> None:
    """Otherwise a ledger that outlives the chain would count them as served."""
    clock, nonces = ManualClock(1_000_000.0), []
    for _ in range(3):
        store = ChainStore(tmp_path / "localnet" / "localnet.sqlite")
        chain = LocalChain(ChainConfig(), store, clock)
        nonces.append(chain.state.topics[0].open_nonces(chain.state.height)[0])
        store.close()
        assert delete_chain(tmp_path, "localnet")
        clock.wall += 3600.0
    assert nonces == [199_440, 200_160, 200_880]  # multiples of 720: on the hour


def test_block_lists_opened_and_closed_windows(open_chain: Open) -> None:
    chain = open_chain()
    blocks: list[tuple[int, list[int], list[int]]] = []
    chain.listeners.append(
        lambda block: blocks.append(
            (block.height, [nonce for _, nonce in block.opened_windows], [nonce for _, nonce in block.closed_windows])
        )
    )
    chain.advance(20)
    assert [tx_record for tx_record in blocks if tx_record[1] or tx_record[2]] == [
        (5, [], [1]),
        (11, [11], []),
        (15, [], [11]),
        (21, [21], []),
    ]


def test_configure_new_version_applies_to_the_next_tx(open_chain: Open) -> None:
    chain = registered_chain(open_chain, version="v9")
    chain.configure(replace(chain.config, version="v10"))
    old = payload_message(WALLET, version="v9", topic_id=67, nonce=1, value="0.5")
    assert broadcast_code(chain, tx(chain, old)) == ("sdk", 2)
    assert include(chain, payload(chain)) == ("", 0, "")


def test_configure_new_topic_opens_at_once(open_chain: Open) -> None:
    chain = open_chain()
    chain.advance(7)
    chain = open_chain(topics=(TOPIC, replace(TOPIC, id=8)))
    topic_spec = chain.state.topic(8)
    assert topic_spec is not None
    assert topic_spec.open_nonces(chain.state.height) == [8]
    assert chain.state.topic(67) == TOPIC
    assert [topic.id for topic in open_chain(topics=None).state.topics] == [67, 8]


@given(st.lists(st.integers(0, 3 * BLOCK_GAS_TARGET), max_size=60))
def test_gas_price_rises_with_full_blocks_and_keeps_its_floor(used: list[int]) -> None:
    price = PRICE_UNIT
    for gas in used:
        after = next_gas_price(price, gas, PRICE_UNIT)
        assert after >= PRICE_UNIT
        assert (after > price) is (gas > BLOCK_GAS_TARGET)
        price = after
    assert min_fee(1, price) * PRICE_UNIT >= price


ACTIONS = st.one_of(
    st.tuples(st.just("register"), st.integers(0, 2), st.integers(-1, 1)),
    st.tuples(st.just("payload"), st.integers(0, 2), st.integers(-1, 1)),
    st.tuples(st.just("poor"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("seal"), st.integers(1, 4), st.just(0)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ACTIONS, max_size=30))
def test_chain_any_transactions_conserve_total_uallo(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("chain") / "chain.sqlite"
    wallets = [Wallet(bytes([number]) * 32) for number in (1, 2, 3)]
    config = ChainConfig(block_time=None, topics=(TOPIC,), fees=Fees(registration=7, data_sending=3))
    store = ChainStore(path)
    chain = LocalChain(config, store, ManualClock(1_000_000.0))
    for kind, number, off in actions:
        wallet = wallets[number % 3]
        newest = TOPIC.newest_nonce(chain.state.height) or 1
        waiting = sum(tx_record.sender == wallet.address for tx_record in chain._mempool.values()) + off
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
            store = ChainStore(path)
            chain = LocalChain(config, store, ManualClock(1_000_000.0))
        assert total_uallo(chain) == chain.state.minted
    chain.advance(1)
    store.close()
    records = list(chain.state.txs.values())
    for account in chain.state.accounts.values():
        assert account.sequence == sum(tx_record.sender == account.address for tx_record in records)
        assert account.balance >= 0
    good = [
        (tx_record.topic_id, tx_record.nonce, tx_record.sender)
        for tx_record in records
        if tx_record.kind == "payload" and tx_record.code == 0
    ]
    assert len(good) == len(set(good))
    assert {(topic, nonce, who) for (topic, nonce), by in chain.state.inferences.items() for who in by} == set(good)


def test_store_open_in_another_node_is_refused(tmp_path: Path) -> None:
    store = ChainStore(tmp_path / "chain.sqlite")
    with pytest.raises(RetryLater, match="Another local node"):
        ChainStore(tmp_path / "chain.sqlite", timeout_seconds=0.0)
    store.close()
    ChainStore(tmp_path / "chain.sqlite", timeout_seconds=0.0).close()


def test_store_damaged_file_is_reported_and_deletable(tmp_path: Path) -> None:
    path = chain_path(tmp_path, "localnet")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(NeedsHuman, match="--reset"):
        ChainStore(path)
    assert delete_chain(tmp_path, "localnet")
    assert not delete_chain(tmp_path, "localnet")
    ChainStore(path).close()


def test_chain_path_rejects_path_traversal(tmp_path: Path) -> None:
    for name in ("", "../x", "a/b", "a.b", "a\0b"):
        with pytest.raises(ValueError, match="chain id"):
            chain_path(tmp_path, name)


def test_broadcast_foreign_signer_is_refused(open_chain: Open) -> None:
    chain = registered_chain(open_chain)
    assert broadcast_code(chain, tx(chain, register_message(OTHER, version="v10", topic_id=67))) == ("sdk", 8)
