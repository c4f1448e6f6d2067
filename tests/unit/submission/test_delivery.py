"""Delivery and reconciliation: what each answer of the chain does to the ledger."""

from __future__ import annotations

import dataclasses

import pytest

from forecastd.errors import NeedsHuman, RetryLater
from forecastd.ledger.ledger import SEQUENCE_USED_REASON, EpochKey, LedgerEntry, SubmissionState
from forecastd.localnet.faults import NodeFault
from forecastd.localnet.state import StoredInference
from forecastd.runtime import failpoints
from forecastd.submission.cycle import CheckedForecast, StageTimer, fetch_candles, sign_forecast
from forecastd.submission.delivery import deliver, reconcile
from forecastd.submission.state_machine import LONG_PAST_BLOCKS
from forecastd.submission.window import SubmissionWindow
from tests.unit.submission.conftest import EPOCH_BLOCKS, TOPIC, CycleHarness

ABANDONED, SIGNED, INCLUDED, MISSED = (
    SubmissionState.ABANDONED, SubmissionState.SIGNED, SubmissionState.INCLUDED, SubmissionState.MISSED,
)  # fmt: skip


def sign(harness: CycleHarness, window: SubmissionWindow | None = None) -> EpochKey:
    """Sign and commit a forecast for the newest window; returns its key."""
    stage = StageTimer(harness.context)
    candles = fetch_candles(harness.context, stage)
    forecast = harness.context.resources.forecaster.forecast(candles)
    checked = CheckedForecast(forecast, synthetic=True, warnings=())
    return sign_forecast(harness.context, stage, window or harness.window, checked).key


def attempts_included(harness: CycleHarness) -> list[int]:
    """The codes of the transactions in blocks."""
    return [record.code for record in harness.chain.chain.state.txs.values()]


@pytest.mark.parametrize("never_sent", [True, False])
def test_submission_is_delivered_once(harness: CycleHarness, *, never_sent: bool) -> None:
    key = sign(harness)
    entry = deliver(harness.context, key, never_sent=never_sent)
    assert (entry.row.state, entry.row.height, entry.row.reason) == (INCLUDED, harness.chain.height(), "")
    assert entry == harness.ledger.get(key)
    assert attempts_included(harness) == [0]
    names = harness.requests()
    assert names[names.index("Balance") + 1] == ("BroadcastTx" if never_sent else "GetTx"), "the first step"
    assert deliver(harness.context, key) == entry, "again, without a second transaction"
    assert attempts_included(harness) == [0]


def test_settled_submission_is_not_sent(harness: CycleHarness) -> None:
    key = sign(harness)
    row = dataclasses.replace(harness.ledger.get(key).row, state=MISSED)
    settled = harness.ledger.record(key, row, 1.0)
    harness.requests()
    assert deliver(harness.context, key, never_sent=True) == settled
    assert harness.requests() == []


@pytest.mark.parametrize(
    ("fault", "state", "message"),
    [
        ("lose-answer", INCLUDED, ""),
        ("hang-answer", INCLUDED, ""),
        ("mempool-full@first=1", INCLUDED, ""),
        ("sequence-race@first=1", INCLUDED, ""),
        ("panic@first=2", INCLUDED, ""),
        ("strange-code@first=2", INCLUDED, ""),
        ("tx-cache@first=1", INCLUDED, ""),
        ("drop@first=3", INCLUDED, ""),
        ("index-late=20", INCLUDED, ""),
        ("hang@method=BroadcastTx@first=3", INCLUDED, ""),
        ("unavailable@method=GetTx@first=5", INCLUDED, ""),
        ("unavailable@method=AccountInfo@first=3", INCLUDED, ""),
        ("mempool-full", SIGNED, "the mempool is full (number of txs 5000 (max: 5000): mempool is full)"),
        ("strange-code", SIGNED, "an unknown answer (a refusal that is in no table)"),
        ("drop", SIGNED, ""),
        ("refuse", SIGNED, ""),
    ],
)
def test_fault_of_an_endpoint_only_delays_the_delivery(
    harness: CycleHarness, fault: str, state: SubmissionState, message: str
) -> None:
    """The first step is to send; the end comes with a block or after the time for a confirmation."""
    key, sent_at = sign(harness), harness.clock.monotonic()
    harness.chain.nodes[0].set_faults(fault)
    entry = deliver(harness.context, key, never_sent=True)
    assert entry.row.state is state
    assert attempts_included(harness) == [0] * (state is INCLUDED)
    if state is SIGNED:
        assert harness.clock.monotonic() - sent_at == pytest.approx(60.0)
        assert entry.row.reason == message
    assert len(harness.ledger.attempts(key)) == 1


def test_waits_between_the_steps_grow(harness: CycleHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    key, waits = sign(harness), list[float]()
    harness.chain.nodes[0].set_faults("drop")
    wait = harness.context.wake.wait

    def record_wait(timeout: float | None = None) -> bool:
        waits.append(timeout or 0.0)
        return wait(timeout)

    monkeypatch.setattr(harness.context.wake, "wait", record_wait)
    deliver(harness.context, key, never_sent=True)
    assert waits[0] == pytest.approx(0.05, rel=0.11)
    assert max(waits) == pytest.approx(5.0, rel=0.11)
    assert len(waits) == pytest.approx(26, abs=8)


def test_next_observation_follows_an_inclusion_at_once(harness: CycleHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    key, names = sign(harness), harness.chain.nodes[0].requests
    wait = harness.context.wake.wait

    def record_wait(timeout: float | None = None) -> bool:
        names.append("wait")
        return wait(timeout)

    monkeypatch.setattr(harness.context.wake, "wait", record_wait)
    names.clear()
    deliver(harness.context, key, never_sent=True)
    assert names[-4:] == ["wait", "GetTx", "GetWorkerLatestInputInferenceByTopicId", "GetLatestBlock"]


def test_delivery_without_limit_lasts_until_the_result_is_proven(harness: CycleHarness) -> None:
    harness.change(confirmation_seconds=None)
    window, key = harness.window, sign(harness)
    harness.chain.nodes[0].set_faults("drop")
    entry = deliver(harness.context, key, never_sent=True)
    assert (entry.row.state, entry.row.reason) == (MISSED, "not included by the end of its window")
    assert harness.missed == [entry]
    assert harness.chain.height() <= window.last_height + 3


def test_stopping_process_ends_the_delivery(harness: CycleHarness) -> None:
    key = sign(harness)
    harness.context.wake.set()
    assert deliver(harness.context, key, never_sent=True).row.state is SIGNED
    assert [name for name in harness.requests() if name in ("BroadcastTx", "GetTx")] == ["BroadcastTx"]


@pytest.mark.parametrize(
    ("fault", "sequence_used"),
    [("low-fee", False), ("out-of-gas", True)],
)
def test_refused_fee_or_gas_abandons_the_bytes(harness: CycleHarness, fault: str, *, sequence_used: bool) -> None:
    """A new signature is needed; the sequence is used only if a block has the old one."""
    harness.chain.chain.inject(NodeFault.parse(fault))
    key = sign(harness)
    entry = deliver(harness.context, key, never_sent=True)
    assert entry.row.state is ABANDONED
    assert entry.row.fee_refused is not sequence_used
    assert entry.row.reason
    account = harness.chain.account(harness.address)
    assert account is not None
    assert account.sequence == int(sequence_used)
    assert harness.missed == []


def test_bytes_abandoned_after_the_window_are_missed(harness: CycleHarness) -> None:
    key = sign(harness)
    harness.ledger.record(key, dataclasses.replace(harness.ledger.get(key).row, state=ABANDONED), 1.0)
    assert deliver(harness.context, key).row.state is ABANDONED
    harness.advance(harness.window.last_height - harness.chain.height() - 1)
    assert deliver(harness.context, key).row.state is ABANDONED
    harness.advance(1)
    entry = deliver(harness.context, key)
    assert entry.row.state is MISSED
    assert harness.missed == [entry]


def test_lost_transaction_is_sent_again(harness: CycleHarness) -> None:
    harness.chain.chain.inject(NodeFault.parse("drop-from-mempool@first=1"))
    key = sign(harness)
    assert deliver(harness.context, key, never_sent=True).row.state is INCLUDED
    assert harness.requests().count("BroadcastTx") > 1


def test_result_is_not_proven_while_an_endpoint_is_silent(harness: CycleHarness) -> None:
    """Two endpoints must lack the transaction. Long past its timeout, one is enough if the sequence is unused."""
    harness.chain.nodes.append(type(harness.chain.nodes[0])(harness.chain.chain))
    harness.chain.nodes[1].set_faults("refuse")
    harness.change(confirmation_seconds=None)
    key, window = sign(harness), harness.window
    harness.chain.nodes[0].set_faults("drop")
    assert deliver(harness.context, key, never_sent=True).row.state is MISSED
    assert harness.chain.height() > window.last_height + LONG_PAST_BLOCKS


def test_delivery_long_past_its_window_without_proof_ends(harness: CycleHarness) -> None:
    """The sequence is used, so only two endpoints could prove that the transaction was not included."""
    harness.chain.nodes.append(type(harness.chain.nodes[0])(harness.chain.chain))
    harness.chain.nodes[1].set_faults("refuse")
    harness.change(confirmation_seconds=None)
    key, window = sign(harness), harness.window
    harness.chain.chain.add_foreign_transaction(harness.address)
    assert deliver(harness.context, key, never_sent=True).row.state is SIGNED
    assert harness.chain.height() == window.last_height + LONG_PAST_BLOCKS + 1


def test_sequence_of_another_signer_settles_as_missed(harness: CycleHarness) -> None:
    harness.change(confirmation_seconds=None)
    key = sign(harness)
    harness.chain.chain.add_foreign_transaction(harness.address)
    entry = deliver(harness.context, key, never_sent=True)
    assert (entry.row.state, entry.row.reason) == (MISSED, SEQUENCE_USED_REASON)


@pytest.mark.parametrize("known_from", [0, None, 1])
def test_forecast_of_another_signer_needs_a_person(harness: CycleHarness, known_from: int | None) -> None:
    """Not when the ledger knows the account from this sequence on only, for then an earlier ledger was lost."""
    harness.chain.account(harness.address)
    harness.chain.chain.add_foreign_transaction(harness.address)  # the signature uses sequence 1
    key = sign(harness)
    if known_from is not None:
        harness.ledger.set_known_from("localnet", harness.address, known_from)
    harness.chain.chain.state.put_inference(
        StoredInference(TOPIC, harness.nonce, harness.address, "0.123", harness.nonce + 1)
    )
    if known_from == 0:
        with pytest.raises(NeedsHuman, match=r"the chain has the value 0\.123 for topic 67"):
            deliver(harness.context, key)
        assert harness.ledger.get(key).row.state is SIGNED
    else:
        entry = deliver(harness.context, key)
        assert (entry.row.state, entry.value) == (INCLUDED, "0.123")


def test_own_forecast_without_its_transaction_is_included(harness: CycleHarness) -> None:
    harness.chain.account(harness.address)
    harness.chain.chain.add_foreign_transaction(harness.address)
    harness.ledger.set_known_from("localnet", harness.address, 0)
    key = sign(harness)
    value = harness.ledger.attempts(key)[0].value
    harness.chain.chain.state.put_inference(
        StoredInference(TOPIC, harness.nonce, harness.address, value + "000", harness.nonce + 1)
    )
    assert deliver(harness.context, key).row.reason == "found by its inference, not yet by its hash"


def test_failed_ledger_ends_the_delivery(harness: CycleHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> LedgerEntry:
        raise RetryLater("the disk is full")

    key = sign(harness)
    monkeypatch.setattr(harness.ledger, "record", fail)
    with pytest.raises(RetryLater, match="the disk is full"):
        deliver(harness.context, key, never_sent=True)


def test_best_answer_of_several_endpoints_counts(harness: CycleHarness) -> None:
    harness.chain.nodes.insert(0, type(harness.chain.nodes[0])(harness.chain.chain))
    harness.chain.nodes.insert(0, type(harness.chain.nodes[0])(harness.chain.chain))
    harness.chain.nodes[0].set_faults("strange-code")
    harness.chain.nodes[1].set_faults("mempool-full")
    key = sign(harness)
    assert deliver(harness.context, key, never_sent=True).row.reason == ""


def test_failpoints_of_a_delivery_are_in_order(harness: CycleHarness) -> None:
    names: list[str] = []
    failpoints.install_hook(names.append)
    try:
        deliver(harness.context, sign(harness), never_sent=True)
    finally:
        failpoints.install_hook(None)
    assert names[:5] == ["before sign", "after sign", "after commit", "before send", "after send"]
    assert names[-1] == "after record"


# Reconciliation


def settle_after(harness: CycleHarness, blocks: int) -> None:
    harness.advance(blocks)
    reconcile(harness.context)


@pytest.mark.parametrize(
    ("fault", "included", "settled"),
    [
        ("", INCLUDED, SubmissionState.ADMITTED),
        ("evicted", INCLUDED, SubmissionState.EVICTED),
        ("passive", SubmissionState.PASSIVE, SubmissionState.PASSIVE),
    ],
)
def test_included_submission_is_settled_when_its_window_closed(
    harness: CycleHarness, fault: str, included: SubmissionState, settled: SubmissionState
) -> None:
    if fault:
        harness.chain.chain.inject(NodeFault.parse(fault))
        harness.advance(EPOCH_BLOCKS)  # the fault takes effect when a window opens
    window, key = harness.window, sign(harness)
    assert deliver(harness.context, key, never_sent=True).row.state is included
    settle_after(harness, window.last_height - harness.chain.height())
    assert harness.ledger.get(key).row.state is included, "the last block of the window may still change it"
    settle_after(harness, 1)
    entry = harness.ledger.get(key)
    assert entry.row.state is settled
    assert entry.settled_at is not None
    assert harness.missed == []


def test_set_that_the_chain_no_longer_keeps_counts(harness: CycleHarness) -> None:
    key = sign(harness)
    deliver(harness.context, key, never_sent=True)
    harness.chain.chain.state.inferences.clear()
    settle_after(harness, EPOCH_BLOCKS)
    assert harness.ledger.get(key).row.state is SubmissionState.ADMITTED


@pytest.mark.parametrize("newer", [True, False])
def test_forecast_that_the_chain_does_not_have_is_passive(harness: CycleHarness, *, newer: bool) -> None:
    """A newer forecast of this worker, without the old set, does not contradict the inclusion."""
    key = sign(harness)
    deliver(harness.context, key, never_sent=True)
    state = harness.chain.chain.state
    state.inferences.clear()
    state.latest_inferences.clear()
    if newer:
        state.put_inference(StoredInference(TOPIC, harness.nonce + EPOCH_BLOCKS, harness.address, "1", 1))
    settle_after(harness, EPOCH_BLOCKS)
    assert harness.ledger.get(key).row.state is (SubmissionState.ADMITTED if newer else SubmissionState.PASSIVE)


def test_sent_submission_of_a_killed_run_is_found(harness: CycleHarness) -> None:
    key = sign(harness)
    harness.chain.broadcast(harness.ledger.attempts(key)[0].tx_bytes)
    harness.requests()
    settle_after(harness, 1)
    assert harness.ledger.get(key).row.state is INCLUDED
    assert "BroadcastTx" not in harness.requests(), "nothing is sent"


def test_first_of_two_signatures_counts(harness: CycleHarness) -> None:
    key = sign(harness)
    harness.ledger.record(key, dataclasses.replace(harness.ledger.get(key).row, state=ABANDONED), 1.0)
    first = harness.ledger.attempts(key)[0]
    sign(harness)
    harness.chain.broadcast(first.tx_bytes)
    settle_after(harness, 1)
    assert harness.ledger.get(key).row.state is INCLUDED


@pytest.mark.parametrize(
    ("state", "fault", "expected"),
    [
        (SIGNED, "", MISSED),  # never sent, and its window has closed
        (ABANDONED, "", MISSED),
        (SIGNED, "unavailable@method=AccountInfo", None),
        (SIGNED, "unavailable@method=GetWorkerLatestInputInferenceByTopicId", None),
    ],
)
def test_unsent_submission_is_missed_after_its_window(
    harness: CycleHarness, state: SubmissionState, fault: str, expected: SubmissionState | None
) -> None:
    key = sign(harness)
    harness.ledger.record(key, dataclasses.replace(harness.ledger.get(key).row, state=state), 1.0)
    reconcile(harness.context)
    assert harness.ledger.get(key).row.state is state
    harness.advance(EPOCH_BLOCKS)
    harness.chain.nodes[0].set_faults(*([fault] if fault else []))
    if expected is None:
        with pytest.raises(RetryLater):
            reconcile(harness.context)
        assert harness.ledger.get(key).row.state is state
    else:
        reconcile(harness.context)
        assert harness.ledger.get(key).row.state is expected
        assert harness.missed == [harness.ledger.get(key)]


@pytest.mark.parametrize(
    ("wallet_topics", "settled"), [(frozenset(), True), (frozenset({67, 69}), False), (frozenset({67}), True)]
)
def test_topics_of_other_threads_are_left_to_them(
    harness: CycleHarness, wallet_topics: frozenset[int], *, settled: bool
) -> None:
    key = ("localnet", 69, *sign(harness)[2:])
    harness.ledger.commit(dataclasses.replace(harness.ledger.attempts(harness.key(harness.nonce))[0], topic_id=69), 1.0)
    harness.change(wallet_topics=wallet_topics)
    settle_after(harness, EPOCH_BLOCKS)
    assert (harness.ledger.get(key).row.state is MISSED) is settled


def test_foreign_value_found_by_reconciliation_is_kept(harness: CycleHarness) -> None:
    """The forecast of a lost ledger is on the chain with another value; the second look settles it."""
    key = sign(harness)
    harness.chain.chain.state.put_inference(
        StoredInference(TOPIC, harness.nonce, harness.address, "0.123", harness.nonce + 1)
    )
    settle_after(harness, EPOCH_BLOCKS)
    assert (harness.ledger.get(key).row.state, harness.ledger.get(key).value) == (SubmissionState.ADMITTED, "0.123")
