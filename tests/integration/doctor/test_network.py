"""The doctor's chain checks over real sockets: gRPC and REST, working and failing endpoints, both chain versions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from forecastd.chain.endpoint_pool import EndpointPool
from forecastd.clock import ReplayClock, SystemClock
from forecastd.doctor import Finding, Level, network
from forecastd.errors import RetryLater
from forecastd.ledger.ledger import Ledger, SubmissionState
from forecastd.ledger.snapshot import open_snapshot
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from forecastd.localnet.faults import parse_faults
from forecastd.settings import Settings, load_settings
from forecastd.submission.account import compare_account
from forecastd.submission.verify import verify_ledger

NOON = 1_772_366_400.0
ADDRESS = "allo19rl4cm2hmr8afy4kldpxz3fka4jguq0ajnh7gv"
DAY = 86_400.0


@contextmanager
def node(tmp_path: Path, **options: Any) -> Iterator[EmbeddedNode]:
    with open_embedded(tmp_path / "node", ReplayClock(NOON), block_time=None, **options) as local_node:
        local_node.advance()
        yield local_node


@contextmanager
def pool(*endpoints: str) -> Iterator[EndpointPool]:
    with EndpointPool(
        endpoints, chain_id="localnet", clock=SystemClock(), hedge_seconds=30.0, timeout_seconds=60.0
    ) as chain:
        yield chain


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    return load_settings()


@pytest.mark.parametrize("version", ["v9", "v10"])
@pytest.mark.parametrize("rest", [False, True])
def test_clock_check_compares_with_latest_block(tmp_path: Path, version: Any, rest: bool) -> None:
    with node(tmp_path, version=version) as local_node, pool(local_node.add_endpoint(rest=rest)) as chain:
        assert abs(chain.block_time() - NOON) <= 5
        for offset, level in ((0.0, Level.OK), (-120.0, Level.WARN), (1.5 * DAY, Level.FAIL)):
            (finding,) = network.check_clock(chain, ReplayClock(NOON + offset))
            assert finding.level is level, finding


def test_endpoint_check_reports_each_and_needs_one_usable(tmp_path: Path) -> None:
    with node(tmp_path) as local_node:
        bad = [local_node.add_endpoint(parse_faults(name)) for name in ("wrong-chain-id", "unavailable", "html")]
        with pool(*bad, local_node.endpoint) as chain:
            findings, usable = network.check_endpoints(chain)
        assert usable
        assert [finding.level for finding in findings] == [Level.WARN, Level.WARN, Level.WARN, Level.OK]
        assert "allora-elsewhere-1" in findings[0].message
        with pool(*bad) as chain:
            findings, usable = network.check_endpoints(chain)
        assert not usable
        assert {finding.level for finding in findings} == {Level.FAIL}


def test_endpoint_check_reports_duplicate(tmp_path: Path) -> None:
    with node(tmp_path) as local_node, pool(local_node.endpoint, local_node.endpoint) as chain:
        findings, _ = network.check_endpoints(chain)
    assert [finding.level for finding in findings] == [Level.OK, Level.WARN]


def levels(findings: list[Finding]) -> list[Level]:
    return [finding.level for finding in findings]


@pytest.mark.parametrize("version", ["v9", "v10"])
def test_topic_check_unregistered_fails_except_on_local_network(
    tmp_path: Path, settings: Settings, version: Any
) -> None:
    with node(tmp_path, version=version) as local_node, pool(local_node.endpoint) as chain:
        assert levels(network.check_topic(chain, settings, "localnet", ADDRESS)) == [Level.OK, Level.OK]
        active, unregistered = network.check_topic(chain, settings, "allora-testnet-1", ADDRESS)
        assert (active.level, unregistered.level) == (Level.OK, Level.FAIL)
        assert "--register" in unregistered.fix
        assert levels(network.check_topic(chain, settings, "localnet", None)) == [Level.OK, Level.SKIP]
        missing_topic = settings.with_values(topic_id=4242)
        assert levels(network.check_topic(chain, missing_topic, "localnet", ADDRESS)) == [Level.FAIL]


def test_balance_check_empty_fails_and_funded_reports_epochs(tmp_path: Path, settings: Settings) -> None:
    absent_path = tmp_path / "ledger.sqlite"
    with node(tmp_path / "poor", faucet=False) as local_node, pool(local_node.endpoint) as chain:
        (empty_account,) = network.check_balance(chain, settings, "localnet", ADDRESS, absent_path)
    with node(tmp_path / "rich") as local_node, pool(local_node.endpoint) as chain:
        chain.account(ADDRESS)
        (funded_account,) = network.check_balance(chain, settings, "localnet", ADDRESS, absent_path)
    assert (empty_account.level, funded_account.level) == (Level.FAIL, Level.OK)
    assert ADDRESS in empty_account.fix
    assert "the current fee" in funded_account.message


def test_sequence_check_ledger_ahead_of_chain_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.set_known_from("localnet", ADDRESS, 7)
    ledger.set_known_from("allora-testnet-1", ADDRESS, 7)
    ledger.close()
    with node(tmp_path) as local_node, pool(local_node.endpoint) as chain:
        (local,) = network.check_sequence(chain, "localnet", ADDRESS, path)
        (real,) = network.check_sequence(chain, "allora-testnet-1", ADDRESS, path)
        (unknown,) = network.check_sequence(chain, "localnet", "allo1other", tmp_path / "absent")
        with open_snapshot(path) as copy:
            assert compare_account(copy, chain, "localnet", ADDRESS).was_reset
    assert (local.level, real.level, unknown.level) == (Level.OK, Level.WARN, Level.OK)


def test_ledger_verify_queries_every_entry_and_keeps_unanswered(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.record_unsigned(("localnet", 67, 720, ADDRESS), SubmissionState.MISSED, 1.0, reason="offline")
    ledger.record_unsigned(
        ("localnet", 67, 1440, ADDRESS), SubmissionState.ADMITTED, 2.0, reason="on chain", value="0.5"
    )
    ledger.record_unsigned(("elsewhere", 67, 1440, ADDRESS), SubmissionState.MISSED, 3.0, reason="offline")
    ledger.close()
    with node(tmp_path) as local_node, open_snapshot(path) as copy:
        with pool(local_node.endpoint) as chain:
            audit = verify_ledger(copy, chain)
            assert [(entry.entry.nonce, entry.agreement) for entry in audit.verdicts] == [
                (1440, "disagrees"),
                (720, "agrees"),
            ]
            assert audit.other_chains == {"elsewhere": 1}
            assert len(verify_ledger(copy, chain, limit=1).verdicts) == 1
            assert verify_ledger(copy, chain, topic_id=68).verdicts == ()
        with pool(local_node.add_endpoint(parse_faults("unavailable"))) as unanswered, pytest.raises(RetryLater):
            verify_ledger(copy, unanswered)
