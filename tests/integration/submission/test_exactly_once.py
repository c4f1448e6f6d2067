"""The campaign in miniature: what `python -m benchmarks campaign` shows at length must hold here in seconds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.campaign import disk, endpoints, faultydisk, race
from benchmarks.campaign.audit import AuditCounts, audit, read_ledger
from benchmarks.campaign.kills import KillCampaign
from benchmarks.campaign.worker import TOPIC, ProcessForker, WorkerTask, new_mnemonic
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from forecastd.localnet.state import Effect
from forecastd.runtime.failpoints import FAILPOINTS

FIRST_FAILPOINT, OTHER_FAILPOINT = (
    "before register",
    "before recover",
)  # only a registration comes to the one, a lost state to the other
FAILPOINTS_IN_TURN = (FIRST_FAILPOINT, *(name for name in FAILPOINTS if name not in (FIRST_FAILPOINT, OTHER_FAILPOINT)))


@contextmanager
def chain(tmp_path: Path) -> Iterator[EmbeddedNode]:
    """A chain whose blocks come with transactions, and else by hand."""
    with open_embedded(tmp_path / "node", SystemClock(), block_time=None) as node:
        yield node


def test_worker_killed_at_each_failpoint_serves_each_window_once(tmp_path: Path) -> None:
    phrase = new_mnemonic()
    wallet = Wallet.from_mnemonic(phrase).address
    nonces: list[int] = []
    with chain(tmp_path) as node, ProcessForker() as process_group:
        for failpoint_name in FAILPOINTS_IN_TURN:
            nonces.append(1 + 720 * len(nonces))
            state = str(tmp_path / "state")
            assert (
                process_group.run(WorkerTask(phrase, state, (node.endpoint,), kill_point=(failpoint_name, 1))).code
                == -9
            ), failpoint_name
            assert process_group.run(WorkerTask(phrase, state, (node.endpoint,))).code == 0, failpoint_name
            node.advance(nonces[-1] + 720 - node.advance(0))
        process_group.run(WorkerTask(phrase, state, (node.endpoint,)))  # settles the last one
        record = node.record()
    inclusions = AuditCounts()
    ledger = read_ledger(tmp_path / "state" / "ledger.sqlite", record.chain_id, wallet)
    assert audit(record, wallet, nonces, ledger, inclusions) == []
    assert (inclusions.served_count, inclusions.doubled_count, inclusions.lost_count) == (len(FAILPOINTS_IN_TURN), 0, 0)


def test_state_lost_after_send_is_recovered_from_chain(tmp_path: Path) -> None:
    phrase = new_mnemonic()
    with chain(tmp_path) as node, ProcessForker() as process_group:
        task = WorkerTask(phrase, str(tmp_path / "state"), (node.endpoint,))
        assert (
            process_group.run(WorkerTask(phrase, task.state_dir, task.endpoints, kill_point=("after record", 1))).code == -9
        )
        for kill in (("before recover", 1.0), None):
            shutil.rmtree(tmp_path / "state")
            result = process_group.run(WorkerTask(phrase, task.state_dir, task.endpoints, kill_point=kill))
        record = node.record()
    assert result.outcome["outcome"] == "already_submitted"
    assert [one.code for one in record.inclusions(TOPIC, 1, Wallet.from_mnemonic(phrase).address)] == [0]


def test_transaction_of_lost_ledger_is_recorded_by_new_ledger(tmp_path: Path) -> None:
    phrase = new_mnemonic()
    wallet = Wallet.from_mnemonic(phrase).address
    with open_embedded(tmp_path / "node", SystemClock(), block_time=None, seal_at_once=False) as node:
        node.call(lambda chain: chain.fund(wallet, 10**24))
        node.call(lambda chain: chain.state.apply(Effect(worker=(TOPIC, wallet))))
        with ProcessForker() as process_group:
            task = WorkerTask(phrase, str(tmp_path / "state"), (node.endpoint,))
            assert process_group.run(replace(task, kill_point=("after send", 1))).code == -9
            shutil.rmtree(tmp_path / "state")
            # Its second signature is sent and refused for its sequence, and then the first one is in a block.
            assert process_group.run(replace(task, kill_point=("after send", 1))).code == -9
            node.advance()
            assert process_group.run(task).code == 0
            node.advance(720)
            assert process_group.run(replace(task, kill_point=("before sign", 1))).code == -9
        record = node.record()
    ledger = read_ledger(tmp_path / "state" / "ledger.sqlite", record.chain_id, wallet)
    assert audit(record, wallet, [1], ledger, AuditCounts(), first_known_nonce=1) == []


def test_random_kills_on_faulty_chain_submit_each_epoch_once(tmp_path: Path) -> None:
    counts = KillCampaign(tmp_path, 4, 8, seed=11).run()
    assert counts.violations == ()
    assert counts.counts["kills"] == 8


def test_one_healthy_endpoint_of_three_is_enough(tmp_path: Path) -> None:
    cases = [("drop", 0), ("lose-answer", 1), ("wrong-chain-id", 2), ("hang@method=BroadcastTx", 1)]
    counts = endpoints.run_campaign(tmp_path, cases, windows=1)
    assert counts.violations == ()
    assert counts.counts["windows served by one inclusion"] == len(cases)


def test_many_processes_with_one_wallet_sign_once(tmp_path: Path) -> None:
    counts = race.run_race(tmp_path, 8)
    assert counts.violations == ()
    assert (counts.counts["signatures"], counts.counts["ended with an error"]) == (1, 7)


def test_ledger_survives_disk_failure_and_power_loss(tmp_path: Path) -> None:
    assert disk.run_campaign(tmp_path, step=29, cut_repetitions=1, seed=5).violations == ()


def test_ledger_without_sync_fails_the_power_loss_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = faultydisk._Connection.execute

    def execute_without_sync(
        self: faultydisk._Connection, sql: str, values: tuple[object, ...] = ()
    ) -> faultydisk._Rows:
        return execute(self, sql.replace("synchronous=EXTRA", "synchronous=OFF"), values)

    monkeypatch.setattr(faultydisk._Connection, "execute", execute_without_sync)
    assert disk.run_campaign(tmp_path, step=60, cut_repetitions=1, seed=5).violations
