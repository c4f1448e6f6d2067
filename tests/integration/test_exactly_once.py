"""The campaign in miniature: what `python -m benchmarks campaign` shows at length must hold here in seconds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.campaign import disk, endpoints, faultydisk, race
from benchmarks.campaign.audit import Tally, audit, read_book
from benchmarks.campaign.kills import Campaign
from benchmarks.campaign.worker import TOPIC, Nursery, Task, new_phrase
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.failpoints import NAMES
from forecastd.localnet.embedded import Embedded, open_embedded
from forecastd.localnet.state import Effect

FIRST, ELSEWHERE = "before use", "before adopt"  # only a registration comes to the one, a lost state to the other
PLACES = (FIRST, *(name for name in NAMES if name not in (FIRST, ELSEWHERE)))


@contextmanager
def chain(tmp_path: Path) -> Iterator[Embedded]:
    """A chain whose blocks come with transactions, and else by hand."""
    with open_embedded(tmp_path / "node", SystemClock(), block_time=None) as node:
        yield node


def test_a_worker_killed_at_every_failpoint_in_turn_serves_each_window_once(tmp_path: Path) -> None:
    phrase = new_phrase()
    wallet = Wallet.from_mnemonic(phrase).address
    nonces: list[int] = []
    with chain(tmp_path) as node, Nursery() as nursery:
        for place in PLACES:
            nonces.append(1 + 720 * len(nonces))
            state = str(tmp_path / "state")
            assert nursery.run(Task(phrase, state, (node.endpoint,), kill=(place, 1))).code == -9, place
            assert nursery.run(Task(phrase, state, (node.endpoint,))).code == 0, place
            node.advance(nonces[-1] + 720 - node.advance(0))
        nursery.run(Task(phrase, state, (node.endpoint,)))  # settles the last one
        record = node.record()
    tally = Tally()
    book = read_book(tmp_path / "state" / "ledger.sqlite", record.chain_id, wallet)
    assert audit(record, wallet, nonces, book, tally) == []
    assert (tally.served, tally.doubled, tally.lost) == (len(PLACES), 0, 0)


def test_a_state_directory_lost_after_the_send_is_made_good_from_the_chain(tmp_path: Path) -> None:
    phrase = new_phrase()
    with chain(tmp_path) as node, Nursery() as nursery:
        task = Task(phrase, str(tmp_path / "state"), (node.endpoint,))
        assert nursery.run(Task(phrase, task.state, task.endpoints, kill=("recorded", 1))).code == -9
        for kill in (("before adopt", 1.0), None):
            shutil.rmtree(tmp_path / "state")
            ended = nursery.run(Task(phrase, task.state, task.endpoints, kill=kill))
        record = node.record()
    assert ended.outcome["outcome"] == "already_submitted"
    assert [one.code for one in record.inclusions(TOPIC, 1, Wallet.from_mnemonic(phrase).address)] == [0]


def test_bytes_of_a_lost_ledger_that_come_first_are_what_the_new_ledger_records(tmp_path: Path) -> None:
    phrase = new_phrase()
    wallet = Wallet.from_mnemonic(phrase).address
    with open_embedded(tmp_path / "node", SystemClock(), block_time=None, seal_at_once=False) as node:
        node.call(lambda chain: chain.fund(wallet, 10**24))
        node.call(lambda chain: chain.state.apply(Effect(worker=(TOPIC, wallet))))
        with Nursery() as nursery:
            task = Task(phrase, str(tmp_path / "state"), (node.endpoint,))
            assert nursery.run(replace(task, kill=("after send", 1))).code == -9
            shutil.rmtree(tmp_path / "state")
            # Its second signature is sent and refused for its sequence, and then the first one is in a block.
            assert nursery.run(replace(task, kill=("after send", 1))).code == -9
            node.advance()
            assert nursery.run(task).code == 0
            node.advance(720)
            assert nursery.run(replace(task, kill=("before sign", 1))).code == -9
        record = node.record()
    book = read_book(tmp_path / "state" / "ledger.sqlite", record.chain_id, wallet)
    assert audit(record, wallet, [1], book, Tally(), remembers=1) == []


def test_random_kills_on_a_chain_that_misbehaves_neither_double_nor_lose(tmp_path: Path) -> None:
    counted = Campaign(tmp_path, 4, 8, seed=11).run()
    assert counted.broken == ()
    assert counted.counts["kills"] == 8


def test_one_well_endpoint_of_three_is_enough(tmp_path: Path) -> None:
    cases = [("drop", 0), ("lose-answer", 1), ("wrong-chain-id", 2), ("hang@method=BroadcastTx", 1)]
    counted = endpoints.campaign(tmp_path, cases, windows=1)
    assert counted.broken == ()
    assert counted.counts["windows served by one inclusion"] == len(cases)


def test_of_many_processes_with_one_wallet_one_signs(tmp_path: Path) -> None:
    counted = race.race(tmp_path, 8)
    assert counted.broken == ()
    assert (counted.counts["signatures"], counted.counts["ended with an error"]) == (1, 7)


def test_a_ledger_survives_a_disk_that_fails_or_loses_power(tmp_path: Path) -> None:
    assert disk.campaign(tmp_path, step=29, cuts=1, seed=5).broken == ()


def test_a_ledger_that_does_not_sync_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = faultydisk._Connection.execute

    def careless(self: faultydisk._Connection, sql: str, values: tuple[object, ...] = ()) -> faultydisk._Rows:
        return execute(self, sql.replace("synchronous=EXTRA", "synchronous=OFF"), values)

    monkeypatch.setattr(faultydisk._Connection, "execute", careless)
    assert disk.campaign(tmp_path, step=60, cuts=1, seed=5).broken
