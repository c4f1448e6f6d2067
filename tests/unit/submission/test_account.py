"""The account compared with the ledger, the registration, and the recovery of a lost ledger."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from forecastd.errors import NeedsHuman
from forecastd.ledger.ledger import Ledger, SubmissionState
from forecastd.localnet.state import StoredInference
from forecastd.settings import Settings
from forecastd.submission.account import (
    MAX_RECOVERED_EPOCHS,
    RECOVERED_REASON,
    check_account,
    has_lost_submission,
    needs_registration,
    record_recovered,
    recover_from_chain,
    register_worker,
)
from forecastd.submission.cycle import run_cycle
from forecastd.testing import FakeForecaster
from tests.unit.submission.conftest import EPOCH_BLOCKS, TOPIC, WALLET, CycleHarness, connect_fast, make_harness

LOCAL, REMOTE = "localnet", "allora-testnet-1"


def use_sequences(harness: CycleHarness, count: int) -> None:
    """Another program with the same key sends transactions."""
    for _ in range(count):
        harness.chain.account(harness.address)  # the faucet creates it
        harness.chain.chain.add_foreign_transaction(harness.address)


@pytest.mark.parametrize(
    ("sequence", "known_from", "own", "chain_id", "is_new", "known_after"),
    [
        (0, None, (), REMOTE, False, 0),  # a new account without transactions: nothing to recover
        (3, None, (), REMOTE, True, 3),  # accepted as it is
        (3, 3, (), REMOTE, False, 3),
        (3, 1, (1, 2), REMOTE, False, 1),  # every sequence since is ours
        (3, 0, (0, 1, 2, 3), REMOTE, False, 0),  # one more is signed, but not in a block yet
        (1, 3, (), REMOTE, False, 3),  # an endpoint that lags
        (1, 3, (), LOCAL, True, 1),  # the local chain was reset
        (0, 3, (), LOCAL, False, 0),
    ],
)
def test_account_is_compared_with_the_ledger(
    harness: CycleHarness, sequence: int, known_from: int | None, own: tuple[int, ...], chain_id: str, *, is_new: bool,
    known_after: int,
) -> None:  # fmt: skip
    ledger = harness.ledger
    use_sequences(harness, sequence)
    if known_from is not None:
        ledger.set_known_from(chain_id, harness.address, known_from)
    for number in own:
        ledger.record_sequence_use(chain_id, harness.address, number, f"{number}", "register")
    assert check_account(harness.chain, ledger, chain_id, harness.address) is is_new
    assert ledger.known_from(chain_id, harness.address) == known_after


def test_account_that_does_not_exist_has_used_no_sequence(harness: CycleHarness) -> None:
    assert not check_account(harness.chain, harness.ledger, REMOTE, "allo1nobody")
    assert harness.ledger.known_from(REMOTE, "allo1nobody") == 0


@pytest.mark.parametrize(
    ("sequence", "shown"), [(3, "the sequences 1, 2 are"), (9, "the sequences 1, 2, 3, 4, 5 and more are")]
)
def test_sequences_of_another_signer_need_a_person(harness: CycleHarness, sequence: int, shown: str) -> None:
    use_sequences(harness, sequence)
    harness.ledger.set_known_from(REMOTE, harness.address, 0)
    harness.ledger.record_sequence_use(REMOTE, harness.address, 0, "AA", "register")
    with pytest.raises(NeedsHuman, match=f"Another worker signs with the key of {harness.address}: {shown}"):
        check_account(harness.chain, harness.ledger, REMOTE, harness.address)
    assert harness.ledger.known_from(REMOTE, harness.address) == 0


def test_reset_local_chain_deletes_the_entries_of_the_old_one(harness: CycleHarness) -> None:
    harness.ledger.set_known_from(LOCAL, harness.address, 5)
    record_recovered(harness.context, 100, "1")
    check_account(harness.chain, harness.ledger, LOCAL, harness.address)
    assert harness.ledger.entries(LOCAL, harness.address) == []


# A ledger that was lost while a transaction was in flight


@pytest.fixture
def lost_ledger(harness: CycleHarness, tmp_path: Path) -> CycleHarness:
    """The worker has sent a submission, which is in no block yet, and has lost its ledger."""
    harness.context.wake.set()  # it does not wait for the block
    assert run_cycle(harness.context).outcome == "failed"
    harness.context.wake.clear()
    harness.ledger.close()
    harness.change(ledger=Ledger(tmp_path / "new.sqlite", connect=connect_fast))
    return harness


def check(harness: CycleHarness) -> bool:
    is_lost_submission = partial(has_lost_submission, harness.context)
    return check_account(harness.chain, harness.ledger, LOCAL, harness.address, is_lost_submission)


@pytest.mark.parametrize("checked_before", [True, False])
def test_submission_of_a_lost_ledger_is_not_another_signers(lost_ledger: CycleHarness, *, checked_before: bool) -> None:
    if checked_before:  # and killed after that
        assert not check(lost_ledger)
    lost_ledger.advance(1)
    outcome = run_cycle(lost_ledger.context)
    assert (outcome.outcome, outcome.reason) == ("already_submitted", RECOVERED_REASON)
    assert lost_ledger.ledger.known_from(LOCAL, lost_ledger.address) == 1
    lost_ledger.advance(EPOCH_BLOCKS)
    assert run_cycle(lost_ledger.context).outcome == "submitted"
    assert not check(lost_ledger)


def test_submission_of_a_lost_ledger_may_be_included_between_two_stages(lost_ledger: CycleHarness) -> None:
    lost_ledger.advance(0)
    lost_ledger.change(forecaster=FakeForecaster(before_forecast=lambda: lost_ledger.advance(1)))
    assert run_cycle(lost_ledger.context).outcome != "submitted", "the epoch has its submission"
    assert run_cycle(lost_ledger.context).outcome == "already_submitted"
    lost_ledger.advance(EPOCH_BLOCKS)
    assert run_cycle(lost_ledger.context).outcome == "submitted"


def test_submission_of_a_lost_ledger_may_be_included_after_the_check(
    lost_ledger: CycleHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registration is queried after the account was compared."""
    is_registered = lost_ledger.chain.is_registered

    def include_and_ask(topic_id: int, worker: str) -> bool:
        lost_ledger.advance(1)
        return is_registered(topic_id, worker)

    monkeypatch.setattr(lost_ledger.chain, "is_registered", include_and_ask)
    assert run_cycle(lost_ledger.context).outcome == "already_submitted"
    lost_ledger.advance(EPOCH_BLOCKS)
    assert run_cycle(lost_ledger.context).outcome == "submitted"


def test_first_signature_accepts_what_was_included_since_the_check(harness: CycleHarness) -> None:
    harness.chain.account(harness.address)
    harness.change(
        forecaster=FakeForecaster(before_forecast=lambda: harness.chain.chain.add_foreign_transaction(harness.address))
    )
    assert run_cycle(harness.context).outcome == "submitted"
    assert harness.ledger.known_from(LOCAL, harness.address) == 1
    assert not check(harness)


def test_submission_of_another_signer_after_the_first_signature_needs_a_person(harness: CycleHarness) -> None:
    assert run_cycle(harness.context).outcome == "submitted"
    harness.chain.chain.add_foreign_transaction(harness.address)
    harness.advance(EPOCH_BLOCKS)
    store(harness, harness.nonce)
    with pytest.raises(NeedsHuman, match="Another worker signs"):
        check(harness)


# Registration


@pytest.mark.parametrize(
    ("network", "register", "registered", "needed"),
    [("local", False, True, False), ("local", False, False, True), ("testnet", True, False, True)],
)
def test_worker_is_registered_when_that_is_allowed(
    harness: CycleHarness, network: str, *, register: bool, registered: bool, needed: bool
) -> None:
    harness.change(settings=Settings.from_values({"topic_id": TOPIC, "allora_network": network}), register=register)
    if not registered:
        harness.chain.chain.state.workers.clear()
    assert needs_registration(harness.context) is needed


def test_unregistered_worker_is_refused_with_the_fee(harness: CycleHarness) -> None:
    harness.change(settings=Settings.from_values({"topic_id": TOPIC, "allora_network": "testnet"}))
    harness.chain.chain.state.workers.clear()
    with pytest.raises(NeedsHuman, match=r"not registered for topic 67 on localnet.*--register.*100000 uallo"):
        needs_registration(harness.context)


def test_worker_that_is_not_permitted_is_refused(tmp_path: Path) -> None:
    harness = make_harness(tmp_path, workers=("allo1other",))
    with pytest.raises(NeedsHuman, match="not permitted to submit to topic 67 on localnet"):
        needs_registration(harness.context)
    harness.ledger.close()


def test_registration_is_in_the_ledger_and_leaves_the_sequences_of_others(harness: CycleHarness) -> None:
    harness.chain.chain.state.workers.clear()
    cost = register_worker(harness.context, harness.nonce)
    assert harness.chain.is_registered(TOPIC, harness.address)
    assert cost > 100_000
    assert harness.ledger.used_sequences(LOCAL, harness.address) == {0}
    (record,) = harness.chain.chain.state.txs.values()
    assert (record.kind, record.code) == ("register", 0)


# Recovery


def store(harness: CycleHarness, nonce: int, worker: str = WALLET.address, value: str = "0.5") -> None:
    """The chain has this worker's forecast."""
    harness.chain.chain.state.put_inference(StoredInference(TOPIC, nonce, worker, value, nonce + 1))


def test_own_epochs_on_the_chain_are_recovered(harness: CycleHarness) -> None:
    newest, topic = harness.nonce, harness.chain.topic(TOPIC)
    assert topic is not None
    nonces = [newest - offset * EPOCH_BLOCKS for offset in range(MAX_RECOVERED_EPOCHS + 2)]
    for nonce in (*nonces[:3], *nonces[-2:]):
        store(harness, nonce)
    store(harness, nonces[4], "allo1other")
    store(harness, nonces[1], "allo1other", "0.9")
    assert recover_from_chain(harness.context, topic, newest) == 3
    entries = harness.ledger.entries(LOCAL, harness.address)
    assert [entry.nonce for entry in entries] == [nonces[-2], nonces[2], nonces[1]]
    assert {(entry.row.state, entry.row.reason, entry.value) for entry in entries} == {
        (SubmissionState.ADMITTED, RECOVERED_REASON, "0.5")
    }
    assert recover_from_chain(harness.context, topic, newest) == 0
    assert harness.missed == []


@pytest.mark.parametrize(("epoch_length", "before", "queries"), [(0, 1000, 0), (100, 250, 2), (100, 100, 0)])
def test_recovery_ends_at_the_first_block(harness: CycleHarness, epoch_length: int, before: int, queries: int) -> None:
    topic = harness.chain.topic(TOPIC)
    assert topic is not None
    harness.requests()
    topic = type(topic)(TOPIC, "", epoch_length, 10, 0, 0)
    assert recover_from_chain(harness.context, topic, before) == 0
    assert harness.requests() == ["GetInferencesAtBlock"] * queries


def test_recovered_epoch_does_not_replace_an_entry(harness: CycleHarness) -> None:
    assert record_recovered(harness.context, 100, "0.5")
    assert not record_recovered(harness.context, 100, "0.6")
    assert harness.entry(100).value == "0.5"
