"""A worker that is killed at every failpoint, or loses its ledger, submits each epoch exactly once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from forecastd.localnet.state import Effect
from forecastd.runtime.failpoints import FAILPOINTS
from tests.support.forked_worker import TOPIC, ProcessForker, WorkerTask
from tests.support.ledger_audit import AuditCounts, audit, read_ledger
from tests.support.mnemonics import new_mnemonic

REGISTRATION_FAILPOINT = "before register"  # reached in the first epoch only
RECOVERY_FAILPOINT = "before recover"  # reached only after the state was lost
FAILPOINTS_IN_TURN = (
    REGISTRATION_FAILPOINT,
    *(name for name in FAILPOINTS if name not in (REGISTRATION_FAILPOINT, RECOVERY_FAILPOINT)),
)


@contextmanager
def chain(tmp_path: Path) -> Iterator[EmbeddedNode]:
    """A chain that makes a block for each transaction, and further blocks on demand."""
    with open_embedded(tmp_path / "node", SystemClock(), block_time=None) as node:
        yield node


def test_worker_killed_at_each_failpoint_serves_each_window_once(tmp_path: Path) -> None:
    phrase = new_mnemonic()
    wallet = Wallet.from_mnemonic(phrase).address
    nonces: list[int] = []
    with chain(tmp_path) as node, ProcessForker() as forker:
        for failpoint_name in FAILPOINTS_IN_TURN:
            nonces.append(1 + 720 * len(nonces))
            state = str(tmp_path / "state")
            assert forker.run(WorkerTask(phrase, state, (node.endpoint,), kill_point=(failpoint_name, 1))).code == -9, (
                failpoint_name
            )
            assert forker.run(WorkerTask(phrase, state, (node.endpoint,))).code == 0, failpoint_name
            node.advance(nonces[-1] + 720 - node.advance(0))
        forker.run(WorkerTask(phrase, state, (node.endpoint,)))  # settles the last epoch
        record = node.record()
    counts = AuditCounts()
    ledger = read_ledger(tmp_path / "state" / "ledger.sqlite", record.chain_id, wallet)
    assert audit(record, wallet, nonces, ledger, counts) == []
    assert (counts.served_count, counts.doubled_count, counts.lost_count) == (len(FAILPOINTS_IN_TURN), 0, 0)


def test_state_lost_after_send_is_recovered_from_chain(tmp_path: Path) -> None:
    phrase = new_mnemonic()
    with chain(tmp_path) as node, ProcessForker() as forker:
        task = WorkerTask(phrase, str(tmp_path / "state"), (node.endpoint,))
        assert forker.run(WorkerTask(phrase, task.state_dir, task.endpoints, kill_point=("after record", 1))).code == -9
        for kill in (("before recover", 1.0), None):
            shutil.rmtree(tmp_path / "state")
            result = forker.run(WorkerTask(phrase, task.state_dir, task.endpoints, kill_point=kill))
        record = node.record()
    assert result.outcome["outcome"] == "already_submitted"
    assert [inclusion.code for inclusion in record.inclusions(TOPIC, 1, Wallet.from_mnemonic(phrase).address)] == [0]


def test_transaction_of_lost_ledger_is_recorded_by_new_ledger(tmp_path: Path) -> None:
    phrase = new_mnemonic()
    wallet = Wallet.from_mnemonic(phrase).address
    with open_embedded(tmp_path / "node", SystemClock(), block_time=None, seal_at_once=False) as node:
        node.call(lambda chain: chain.fund(wallet, 10**24))
        node.call(lambda chain: chain.state.apply(Effect(worker=(TOPIC, wallet))))
        with ProcessForker() as forker:
            task = WorkerTask(phrase, str(tmp_path / "state"), (node.endpoint,))
            assert forker.run(replace(task, kill_point=("after send", 1))).code == -9
            shutil.rmtree(tmp_path / "state")
            # The second signature is sent but refused for its sequence; then the first one is included.
            assert forker.run(replace(task, kill_point=("after send", 1))).code == -9
            node.advance()
            assert forker.run(task).code == 0
            node.advance(720)
            assert forker.run(replace(task, kill_point=("before sign", 1))).code == -9
        record = node.record()
    ledger = read_ledger(tmp_path / "state" / "ledger.sqlite", record.chain_id, wallet)
    assert audit(record, wallet, [1], ledger, AuditCounts(), first_known_nonce=1) == []
