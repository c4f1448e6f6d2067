"""The campaign in miniature: what `python -m benchmarks campaign` shows at length holds here in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.campaign import disk, endpoints, faulty_disk, race
from benchmarks.campaign.kills import KillCampaign


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
    execute = faulty_disk._Connection.execute

    def execute_without_sync(
        self: faulty_disk._Connection, sql: str, values: tuple[object, ...] = ()
    ) -> faulty_disk._Rows:
        return execute(self, sql.replace("synchronous=EXTRA", "synchronous=OFF"), values)

    monkeypatch.setattr(faulty_disk._Connection, "execute", execute_without_sync)
    assert disk.run_campaign(tmp_path, step=60, cut_repetitions=1, seed=5).violations
