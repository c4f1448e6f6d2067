"""The ledger in the hands of several threads, and whom it suspects."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from forecastd.errors import NeedsHuman
from forecastd.ledger import OVERTAKEN, Ledger, State, Submission

WALLET = "allo1w"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger.sqlite")
    yield made
    made.close()


def submission(topic_id: int, nonce: int, sequence: int) -> Submission:
    raw = f"{topic_id}/{nonce}/{sequence}".encode()
    return Submission("localnet", topic_id, nonce, WALLET, "0.1", sequence, raw, raw.hex(), nonce + 9, 1, 1)


def test_threads_commit_and_record_side_by_side(ledger: Ledger) -> None:
    wrong: list[BaseException] = []

    def work(topic_id: int) -> None:
        try:
            for nonce in range(1, 16):
                one = submission(topic_id, nonce, 100 * topic_id + nonce)
                row = ledger.commit(one, float(nonce))
                ledger.record(one.key, replace(row, state=State.INCLUDED, height=nonce), float(nonce))
                ledger.entries("localnet", WALLET)
                ledger.free_sequence(one.key, 0)
        except BaseException as error:  # noqa: BLE001 - for the main thread
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(topic_id,)) for topic_id in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert [ledger.counts("localnet", WALLET, topic_id) for topic_id in range(1, 7)] == [{State.INCLUDED: 15}] * 6
    assert ledger.check() == "ok"


def test_of_threads_with_the_same_epoch_one_signs(ledger: Ledger) -> None:
    refused: list[NeedsHuman] = []
    gate = threading.Barrier(8)

    def work(sequence: int) -> None:
        gate.wait()
        try:
            ledger.commit(submission(67, 1, sequence), 1.0)
        except NeedsHuman as error:
            refused.append(error)

    threads = [threading.Thread(target=work, args=(sequence,)) for sequence in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    assert len(ledger.attempts(("localnet", 67, 1, WALLET))) == 1


def test_a_sequence_that_is_to_be_signed_again_elsewhere_is_not_free(ledger: Ledger) -> None:
    one = submission(67, 1, 5)
    ledger.record(one.key, replace(ledger.commit(one, 1.0), state=State.DEAD, refused=True), 1.0)
    other = ("localnet", 69, 1, WALLET)
    assert ledger.free_sequence(other, 5) == 5
    assert ledger.free_sequence(other, 5, elsewhere=frozenset({67})) == 6
    assert ledger.free_sequence(one.key, 5, elsewhere=frozenset({69})) == 5


def overtaken(ledger: Ledger, one: Submission) -> None:
    row = ledger.commit(one, 1.0)
    ledger.record(one.key, replace(row, state=State.MISSED, reason=OVERTAKEN), 1.0)


def test_a_sequence_that_somebody_else_used_is_told(ledger: Ledger) -> None:
    ledger.know_from("localnet", WALLET, 3)
    overtaken(ledger, submission(67, 1, 5))
    assert ledger.unexplained("localnet", WALLET, 6) == [3, 4, 5]


@pytest.mark.parametrize("by", ["a registration", "another topic"])
def test_a_sequence_that_another_transaction_of_ours_used_is_no_stranger(ledger: Ledger, by: str) -> None:
    ledger.know_from("localnet", WALLET, 4)
    ledger.note_use("localnet", WALLET, 4, "AA", "register for topic 67")
    overtaken(ledger, submission(67, 1, 5))
    if by == "another topic":
        ledger.commit(submission(69, 1, 5), 1.0)
    else:
        ledger.note_use("localnet", WALLET, 5, "BB", "register for topic 69")
    assert ledger.unexplained("localnet", WALLET, 6) == []
