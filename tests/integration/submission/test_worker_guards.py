"""What must never be signed for a real network, tested on a local node with the chain id of testnet."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from forecastd.clock import ReplayClock, SystemClock, to_iso
from forecastd.inference.stages import StageResult
from forecastd.ledger.ledger import Ledger, SubmissionState
from forecastd.localnet.embedded import open_embedded
from forecastd.localnet.faults import NodeFault
from forecastd.market.sources import open_source
from forecastd.market.sources.fake_tiingo import FakeTiingo
from forecastd.settings import Settings, load_settings
from forecastd.submission.worker import run_once

PHRASE = "legal winner thank year wave sausage worth useful legal winner thank yellow"  # BIP-39's own example
TESTNET = "allora-testnet-1"


class MidHourClock(SystemClock):
    """The machine's clock moved to the middle of the hour, so the candle of the last hour is complete."""

    def __init__(self) -> None:
        self._offset = super().now() % 3600 - 1800

    def now(self) -> float:
        return super().now() - self._offset


@pytest.fixture
def trained_bundle(root: Path, tmp_path: Path) -> Path:
    """The demo bundle, with a manifest that claims training on real candles."""
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
def settings(tmp_path: Path, trained_bundle: Path, testnet: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    return load_settings(
        allora_network="testnet", rpc_endpoints=(testnet,), mnemonic=PHRASE, model=trained_bundle, state_dir=tmp_path / "s",
        log_dir=tmp_path / "l", data_source="tiingo", tiingo_api_key="k",
    )  # fmt: skip


def test_synthetic_candles_from_real_source_are_not_signed(settings: Settings) -> None:
    clock = SystemClock()
    with FakeTiingo(open_source("sample", settings), clock) as server:
        topic_settings = settings.with_values(tiingo_url=server.url)
        (outcome,) = run_once([topic_settings], clock, register=True)
    assert outcome.exit_code == 5
    assert outcome.synthetic is True
    assert "synthetic" in outcome.reason
    assert outcome.tx_hash is None


@pytest.mark.parametrize("offset", [-86_400.0, 86_400.0])
def test_wrong_clock_uses_chain_time_with_warning(settings: Settings, tmp_path: Path, offset: float) -> None:
    stages: list[StageResult] = []
    right = MidHourClock()
    wrong = ReplayClock(right.now() + offset)
    with (
        FakeTiingo(open_source("sample", settings), right) as server,
        open_embedded(tmp_path / "right", right, chain_id=TESTNET) as node,
    ):
        topic_settings = settings.with_values(tiingo_url=server.url, rpc_endpoints=(node.endpoint,))
        run_once([topic_settings], wrong, register=True, on_stage_end=stages.append)
    (data,) = (stage.text for stage in stages if stage.name == "data")
    assert "using the chain's time" in data
    assert f"candles to {to_iso(right.now() // 3600 * 3600)}" in data


def test_model_with_other_horizon_is_refused(settings: Settings) -> None:
    (outcome,) = run_once([settings.with_values(horizon_hours=24.0)], SystemClock(), register=True)
    assert outcome.exit_code == 5
    assert "needs a horizon of 24 h" in outcome.reason


def test_unregistered_worker_is_refused_with_the_fee(settings: Settings) -> None:
    (outcome,) = run_once([settings], SystemClock())
    assert outcome.exit_code == 5
    assert "--register" in outcome.reason
    assert "uallo" in outcome.reason


def test_maximum_fee_limits_the_registration(settings: Settings, tmp_path: Path) -> None:
    local = load_settings(state_dir=tmp_path / "local", log_dir=tmp_path / "l", max_fee_uallo=463_000)
    clock = MidHourClock()
    (outcome,) = run_once([local], clock)
    assert outcome.exit_code == 5
    assert "MAX_FEE_UALLO" in outcome.reason
    (outcome,) = run_once([replace_fee(local)], clock)
    assert outcome.outcome == "submitted"


def test_lost_ledger_is_recovered_from_chain(tmp_path: Path, root: Path) -> None:
    settings = load_settings(
        state_dir=tmp_path / "s", log_dir=tmp_path / "l", mnemonic=PHRASE, model=root / "models" / "demo"
    )
    with open_embedded(tmp_path / "node", SystemClock(), block_time=None) as node:
        topic_settings = settings.with_values(rpc_endpoints=(node.endpoint,))
        nonces = []
        for _ in range(3):
            (outcome,) = run_once([topic_settings], SystemClock())
            assert outcome.outcome == "submitted", outcome.reason
            nonces.append(outcome.nonce)
            assert outcome.nonce is not None
            node.advance(outcome.nonce + 720 - node.advance(0))
        for part in (tmp_path / "s").glob("ledger.sqlite*"):
            part.unlink()
        (outcome,) = run_once([topic_settings], SystemClock())
        assert outcome.outcome == "submitted", outcome.reason
    with Ledger(tmp_path / "s" / "ledger.sqlite") as ledger:
        entries = ledger.entries("localnet", str(outcome.wallet))
    assert [entry.nonce for entry in entries] == [*nonces, outcome.nonce]
    assert [entry.row.state for entry in entries] == [SubmissionState.ADMITTED] * 3 + [SubmissionState.INCLUDED]


def test_retrying_cycle_waits_for_the_first_endpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The only endpoint refuses connections when the cycle starts and answers a moment later; the epoch is served."""
    caplog.set_level(logging.INFO)
    with open_embedded(tmp_path / "node", SystemClock(), block_time=None) as node:
        node.set_faults([NodeFault("refuse")])
        settings = load_settings(state_dir=tmp_path / "s", log_dir=tmp_path / "l", rpc_endpoints=(node.endpoint,))

        finished = threading.Event()

        def start_node() -> None:
            while "Retrying" not in caplog.text and not finished.is_set():
                finished.wait(0.05)
            node.set_faults()

        thread = threading.Thread(target=start_node)
        thread.start()
        try:
            (outcome,) = run_once([settings], SystemClock(), retry_until_closed=True)
        finally:
            finished.set()
            thread.join()
    assert outcome.outcome == "submitted", outcome.reason


def test_lost_answer_keeps_registration_and_submission(tmp_path: Path) -> None:
    settings = load_settings(state_dir=tmp_path / "s", log_dir=tmp_path / "l")
    with open_embedded(tmp_path / "node", SystemClock(), block_time=None) as node:
        endpoint = node.add_endpoint([NodeFault("lose-answer")])
        (outcome,) = run_once([settings.with_values(rpc_endpoints=(endpoint,))], SystemClock())
        assert outcome.outcome == "submitted", outcome.reason
        assert len(node.record().inclusions(67, outcome.nonce or 0, outcome.wallet or "")) == 1


def replace_fee(settings: Settings) -> Settings:
    return settings.with_values(max_fee_uallo=10**9)
