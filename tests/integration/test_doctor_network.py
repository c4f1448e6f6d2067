"""The doctor's questions to a chain, over real sockets: gRPC and REST, sound and broken, of both versions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from forecastd.audit import verify
from forecastd.bookkeeping import compare_account
from forecastd.chain.endpoints import Endpoints
from forecastd.clock import ReplayClock, SystemClock
from forecastd.doctor import Finding, Level, network
from forecastd.errors import RetryLater
from forecastd.ledger import Ledger, State
from forecastd.ledgercopy import read_ledger
from forecastd.localnet.embedded import Embedded, open_embedded
from forecastd.localnet.faults import parse_faults
from forecastd.settings import Settings

NOON = 1_772_366_400.0
ADDRESS = "allo19rl4cm2hmr8afy4kldpxz3fka4jguq0ajnh7gv"
DAY = 86_400.0


@contextmanager
def node(tmp_path: Path, **more: Any) -> Iterator[Embedded]:
    with open_embedded(tmp_path / "node", ReplayClock(NOON), block_time=None, **more) as running:
        running.advance()
        yield running


@contextmanager
def pool(*endpoints: str) -> Iterator[Endpoints]:
    with Endpoints(endpoints, chain_id="localnet", clock=SystemClock(), soft=30.0, total=60.0) as chain:
        yield chain


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    return Settings()


@pytest.mark.parametrize("version", ["v9", "v10"])
@pytest.mark.parametrize("rest", [False, True])
def test_the_clock_is_held_against_the_latest_block(tmp_path: Path, version: Any, rest: bool) -> None:
    with node(tmp_path, version=version) as running, pool(running.add_endpoint(rest=rest)) as chain:
        assert abs(chain.block_time() - NOON) <= 5
        for ahead, level in ((0.0, Level.OK), (-120.0, Level.WARN), (1.5 * DAY, Level.FAIL)):
            (finding,) = network.check_clock(chain, ReplayClock(NOON + ahead))
            assert finding.level is level, finding


def test_each_endpoint_has_a_line_and_one_good_one_is_enough(tmp_path: Path) -> None:
    with node(tmp_path) as running:
        bad = [running.add_endpoint(parse_faults(name)) for name in ("wrong-chain-id", "unavailable", "html")]
        with pool(*bad, running.endpoint) as chain:
            findings, usable = network.survey(chain)
        assert usable
        assert [finding.level for finding in findings] == [Level.WARN, Level.WARN, Level.WARN, Level.OK]
        assert "allora-elsewhere-1" in findings[0].found
        with pool(*bad) as chain:
            findings, usable = network.survey(chain)
        assert not usable
        assert {finding.level for finding in findings} == {Level.FAIL}


def test_an_endpoint_given_twice_is_told(tmp_path: Path) -> None:
    with node(tmp_path) as running, pool(running.endpoint, running.endpoint) as chain:
        findings, _ = network.survey(chain)
    assert [finding.level for finding in findings] == [Level.OK, Level.WARN]


def levels(findings: list[Finding]) -> list[Level]:
    return [finding.level for finding in findings]


@pytest.mark.parametrize("version", ["v9", "v10"])
def test_registration_counts_on_a_real_network_and_is_done_by_itself_on_the_local_one(
    tmp_path: Path, settings: Settings, version: Any
) -> None:
    with node(tmp_path, version=version) as running, pool(running.endpoint) as chain:
        assert levels(network.check_topic(chain, settings, "localnet", ADDRESS)) == [Level.OK, Level.OK]
        active, lacking = network.check_topic(chain, settings, "allora-testnet-1", ADDRESS)
        assert (active.level, lacking.level) == (Level.OK, Level.FAIL)
        assert "--register" in lacking.fix
        assert levels(network.check_topic(chain, settings, "localnet", None)) == [Level.OK, Level.SKIP]
        absent = settings.model_copy(update={"topic_id": 4242})
        assert levels(network.check_topic(chain, absent, "localnet", ADDRESS)) == [Level.FAIL]


def test_an_account_without_money_fails_and_one_with_it_has_a_runway(tmp_path: Path, settings: Settings) -> None:
    absent = tmp_path / "ledger.sqlite"
    with node(tmp_path / "poor", faucet=False) as running, pool(running.endpoint) as chain:
        (poor,) = network.check_balance(chain, settings, "localnet", ADDRESS, absent)
    with node(tmp_path / "rich") as running, pool(running.endpoint) as chain:
        chain.account(ADDRESS)
        (rich,) = network.check_balance(chain, settings, "localnet", ADDRESS, absent)
    assert (poor.level, rich.level) == (Level.FAIL, Level.OK)
    assert ADDRESS in poor.fix
    assert "the fee as of now" in rich.found


def test_a_ledger_that_knows_the_account_from_later_on_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.know_from("localnet", ADDRESS, 7)
    ledger.know_from("allora-testnet-1", ADDRESS, 7)
    ledger.close()
    with node(tmp_path) as running, pool(running.endpoint) as chain:
        (local,) = network.check_sequence(chain, "localnet", ADDRESS, path)
        (real,) = network.check_sequence(chain, "allora-testnet-1", ADDRESS, path)
        (unseen,) = network.check_sequence(chain, "localnet", "allo1other", tmp_path / "absent")
        with read_ledger(path) as copy:
            assert compare_account(copy, chain, "localnet", ADDRESS).began_anew
    assert (local.level, real.level, unseen.level) == (Level.OK, Level.WARN, Level.OK)


def test_verifying_asks_of_every_entry_and_never_takes_silence_for_a_no(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.adopt(("localnet", 67, 720, ADDRESS), State.MISSED, 1.0, reason="asleep")
    ledger.adopt(("localnet", 67, 1440, ADDRESS), State.ADMITTED, 2.0, reason="found", value="0.5")
    ledger.adopt(("elsewhere", 67, 1440, ADDRESS), State.MISSED, 3.0, reason="asleep")
    ledger.close()
    with node(tmp_path) as running, read_ledger(path) as copy:
        with pool(running.endpoint) as chain:
            audit = verify(copy, chain)
            assert [(one.entry.nonce, one.said) for one in audit.verdicts] == [(1440, "disagrees"), (720, "agrees")]
            assert audit.elsewhere == {"elsewhere": 1}
            assert len(verify(copy, chain, limit=1).verdicts) == 1
            assert verify(copy, chain, topic_id=68).verdicts == ()
        with pool(running.add_endpoint(parse_faults("unavailable"))) as silent, pytest.raises(RetryLater):
            verify(copy, silent)
