"""What must never be signed for a real network, however it comes about: driven on a node that claims to be one."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from forecastd.clock import ReplayClock, SystemClock, iso
from forecastd.ledger import Ledger, State
from forecastd.localnet.embedded import open_embedded
from forecastd.localnet.faults import Fault
from forecastd.settings import Settings, load_settings
from forecastd.sources import open_source
from forecastd.sources.faketiingo import FakeTiingo
from forecastd.stages import Stage
from forecastd.worker import run_once

PHRASE = "legal winner thank year wave sausage worth useful legal winner thank yellow"  # BIP-39's own example
TESTNET = "allora-testnet-1"


class MidHour(SystemClock):
    """The machine's clock put back to the middle of the hour: what is asked for an hour has its hour."""

    def __init__(self) -> None:
        self._back = super().now() % 3600 - 1800

    def now(self) -> float:
        return super().now() - self._back


@pytest.fixture
def real_bundle(root: Path, tmp_path: Path) -> Path:
    """The demo bundle, saying that it was trained on real candles."""
    path = tmp_path / "bundle"
    path.mkdir()
    for part in (root / "models" / "demo").iterdir():
        (path / part.name).write_bytes(part.read_bytes())
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["training"]["synthetic"] = False
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture
def testnet(tmp_path: Path) -> Iterator[str]:
    with open_embedded(tmp_path / "node", SystemClock(), chain_id=TESTNET) as node:
        yield node.endpoint


@pytest.fixture
def settings(tmp_path: Path, real_bundle: Path, testnet: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    return load_settings(
        allora_network="testnet", rpc_endpoints=(testnet,), mnemonic=PHRASE, model=real_bundle, state_dir=tmp_path / "s",
        log_dir=tmp_path / "l", data_source="tiingo", tiingo_api_key="k",
    )  # fmt: skip


def test_made_up_candles_that_come_through_a_real_source_are_not_signed(settings: Settings) -> None:
    clock = SystemClock()
    with FakeTiingo(open_source("sample", settings), clock) as server:
        one = settings.model_copy(update={"tiingo_url": server.url})
        (outcome,) = run_once([one], clock, register=True)
    assert outcome.exit_code == 5
    assert outcome.synthetic is True
    assert "synthetic" in outcome.reason
    assert outcome.tx_hash is None


@pytest.mark.parametrize("off", [-86_400.0, 86_400.0])
def test_a_clock_a_day_off_is_told_and_the_chains_time_is_used(settings: Settings, tmp_path: Path, off: float) -> None:
    stages: list[Stage] = []
    right = MidHour()
    wrong = ReplayClock(right.now() + off)
    with (
        FakeTiingo(open_source("sample", settings), right) as server,
        open_embedded(tmp_path / "right", right, chain_id=TESTNET) as node,
    ):
        one = settings.model_copy(update={"tiingo_url": server.url, "rpc_endpoints": (node.endpoint,)})
        run_once([one], wrong, register=True, report=stages.append)
    (data,) = (stage.text for stage in stages if stage.name == "data")
    assert "the chain's time is used" in data
    assert f"candles to {iso(right.now() // 3600 * 3600)}" in data


def test_a_model_of_another_horizon_is_refused(settings: Settings) -> None:
    (outcome,) = run_once([settings.model_copy(update={"horizon_hours": 24.0})], SystemClock(), register=True)
    assert outcome.exit_code == 5
    assert "asks for 24 h ahead" in outcome.reason


def test_an_unregistered_worker_is_told_the_fee_before_anything_is_paid(settings: Settings) -> None:
    (outcome,) = run_once([settings], SystemClock())
    assert outcome.exit_code == 5
    assert "--register" in outcome.reason
    assert "uallo" in outcome.reason


def test_a_maximum_fee_bounds_the_registration_too(settings: Settings, tmp_path: Path) -> None:
    local = load_settings(state_dir=tmp_path / "local", log_dir=tmp_path / "l", max_fee_uallo=463_000)
    clock = MidHour()
    (outcome,) = run_once([local], clock)
    assert outcome.exit_code == 5
    assert "MAX_FEE_UALLO" in outcome.reason
    (outcome,) = run_once([replace_fee(local)], clock)
    assert outcome.outcome == "submitted"


def test_a_lost_ledger_is_rebuilt_from_what_the_chain_counts(tmp_path: Path, root: Path) -> None:
    settings = load_settings(
        state_dir=tmp_path / "s", log_dir=tmp_path / "l", mnemonic=PHRASE, model=root / "models" / "demo"
    )
    with open_embedded(tmp_path / "node", SystemClock(), block_time=None) as node:
        one = settings.model_copy(update={"rpc_endpoints": (node.endpoint,)})
        nonces = []
        for _ in range(3):
            (outcome,) = run_once([one], SystemClock())
            assert outcome.outcome == "submitted", outcome.reason
            nonces.append(outcome.nonce)
            assert outcome.nonce is not None
            node.advance(outcome.nonce + 720 - node.advance(0))
        for part in (tmp_path / "s").glob("ledger.sqlite*"):
            part.unlink()
        (outcome,) = run_once([one], SystemClock())
        assert outcome.outcome == "submitted", outcome.reason
    with closing(Ledger(tmp_path / "s" / "ledger.sqlite")) as ledger:
        entries = ledger.entries("localnet", str(outcome.wallet))
    assert [entry.nonce for entry in entries] == [*nonces, outcome.nonce]
    assert [entry.row.state for entry in entries] == [State.ADMITTED] * 3 + [State.INCLUDED]


def test_a_cycle_that_persists_waits_for_the_first_endpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody listens at the endpoint when the cycle begins; a node does a moment later, and the epoch is served."""
    caplog.set_level(logging.INFO)
    with open_embedded(tmp_path / "node", SystemClock(), block_time=None) as node:
        node.set_faults([Fault("refuse")])
        settings = load_settings(state_dir=tmp_path / "s", log_dir=tmp_path / "l", rpc_endpoints=(node.endpoint,))

        ended = threading.Event()

        def come_up() -> None:
            while "Trying again" not in caplog.text and not ended.is_set():
                ended.wait(0.05)
            node.set_faults()

        thread = threading.Thread(target=come_up)
        thread.start()
        try:
            (outcome,) = run_once([settings], SystemClock(), persist=True)
        finally:
            ended.set()
            thread.join()
    assert outcome.outcome == "submitted", outcome.reason


def test_a_lost_answer_costs_neither_the_registration_nor_the_submission(tmp_path: Path) -> None:
    settings = load_settings(state_dir=tmp_path / "s", log_dir=tmp_path / "l")
    with open_embedded(tmp_path / "node", SystemClock(), block_time=None) as node:
        endpoint = node.add_endpoint([Fault("lose-answer")])
        (outcome,) = run_once([settings.model_copy(update={"rpc_endpoints": (endpoint,)})], SystemClock())
        assert outcome.outcome == "submitted", outcome.reason
        assert len(node.record().inclusions(67, outcome.nonce or 0, outcome.wallet or "")) == 1


def replace_fee(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_fee_uallo": 10**9})
