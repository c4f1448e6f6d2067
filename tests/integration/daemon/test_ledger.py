"""The ledger under concurrent threads, and the sequences that it cannot explain."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from forecastd.errors import NeedsHuman
from forecastd.ledger.ledger import SEQUENCE_USED_REASON, Ledger, Submission, SubmissionState

WALLET = "allo1w"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


def submission(topic_id: int, nonce: int, sequence: int) -> Submission:
    raw = f"{topic_id}/{nonce}/{sequence}".encode()
    tx_hash = hashlib.sha256(raw).hexdigest().upper()
    return Submission("localnet", topic_id, nonce, WALLET, "0.1", sequence, raw, tx_hash, nonce + 9, 1, 1)


def test_threads_commit_and_record_concurrently(ledger: Ledger) -> None:
    errors: list[BaseException] = []

    def work(topic_id: int) -> None:
        try:
            for nonce in range(1, 16):
                reservation = submission(topic_id, nonce, 100 * topic_id + nonce)
                row = ledger.commit(reservation, float(nonce))
                ledger.record(reservation.key, replace(row, state=SubmissionState.INCLUDED, height=nonce), float(nonce))
                ledger.entries("localnet", WALLET)
                ledger.next_free_sequence(reservation.key, 0)
        except BaseException as error:  # noqa: BLE001 - for the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(topic_id,)) for topic_id in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for topic_id in range(1, 7):
        entries = ledger.entries("localnet", WALLET, topic_id=topic_id)
        assert [entry.row.state for entry in entries] == [SubmissionState.INCLUDED] * 15
    assert ledger.find_problems() == []


def test_only_one_thread_signs_an_epoch(ledger: Ledger) -> None:
    rejections: list[NeedsHuman] = []
    barrier = threading.Barrier(8)

    def work(sequence: int) -> None:
        barrier.wait()
        try:
            ledger.commit(submission(67, 1, sequence), 1.0)
        except NeedsHuman as error:
            rejections.append(error)

    threads = [threading.Thread(target=work, args=(sequence,)) for sequence in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rejections) == 7
    assert len(ledger.attempts(("localnet", 67, 1, WALLET))) == 1


def test_sequence_reserved_for_another_epoch_is_not_free(ledger: Ledger) -> None:
    reservation = submission(67, 1, 5)
    ledger.record(
        reservation.key,
        replace(ledger.commit(reservation, 1.0), state=SubmissionState.ABANDONED, fee_refused=True),
        1.0,
    )
    other = ("localnet", 69, 1, WALLET)
    assert ledger.next_free_sequence(other, 5) == 5
    assert ledger.next_free_sequence(other, 5, topics_of_other_threads=frozenset({67})) == 6
    assert ledger.next_free_sequence(reservation.key, 5, topics_of_other_threads=frozenset({69})) == 5


def record_overtaken(ledger: Ledger, reservation: Submission) -> None:
    row = ledger.commit(reservation, 1.0)
    ledger.record(reservation.key, replace(row, state=SubmissionState.MISSED, reason=SEQUENCE_USED_REASON), 1.0)


def test_sequence_used_by_another_signer_is_reported(ledger: Ledger) -> None:
    ledger.set_known_from("localnet", WALLET, 3)
    record_overtaken(ledger, submission(67, 1, 5))
    assert ledger.unexplained_sequences("localnet", WALLET, 6) == [3, 4, 5]


@pytest.mark.parametrize("by", ["registration", "topic"])
def test_sequence_used_by_own_transaction_is_not_reported(ledger: Ledger, by: str) -> None:
    ledger.set_known_from("localnet", WALLET, 4)
    ledger.record_sequence_use("localnet", WALLET, 4, "AA", "register for topic 67")
    record_overtaken(ledger, submission(67, 1, 5))
    if by == "topic":
        ledger.commit(submission(69, 1, 5), 1.0)
    else:
        ledger.record_sequence_use("localnet", WALLET, 5, "BB", "register for topic 69")
    assert ledger.unexplained_sequences("localnet", WALLET, 6) == []
