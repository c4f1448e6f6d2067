"""A whole cycle: its outcome, what it leaves in the ledger, and what it does again after a failure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from forecastd.clock import to_iso
from forecastd.errors import ForecastdError, NeedsHuman, RetryLater, SkipEpoch
from forecastd.inference.forecaster import TooFewCandles
from forecastd.ledger.ledger import LedgerEntry, LedgerRow, Submission, SubmissionState
from forecastd.localnet.faults import NodeFault
from forecastd.localnet.state import StoredInference
from forecastd.runtime import failpoints
from forecastd.settings import Settings
from forecastd.submission.account import RECOVERED_REASON
from forecastd.submission.cycle import (
    CycleValues,
    Epoch,
    StageTimer,
    fetch_candles,
    find_epoch,
    make_outcome,
    network_values,
    reference_time,
    run_cycle,
)
from forecastd.submission.window import SubmissionWindow
from forecastd.testing import FakeForecaster
from models.base import Forecast
from tests.unit.submission.conftest import (
    EPOCH_BLOCKS,
    TOPIC,
    WINDOW_BLOCKS,
    CycleHarness,
    make_harness,
)

STAGES = ["chain", "data", "model", "forecast", "guards", "sign", "submit"]
ADMITTED, INCLUDED, MISSED, SIGNED = (
    SubmissionState.ADMITTED, SubmissionState.INCLUDED, SubmissionState.MISSED, SubmissionState.SIGNED,
)  # fmt: skip


class ScriptedForecaster(FakeForecaster):
    """Raises one error after the other, by the name of the method, before it works."""

    def __init__(self, **errors: Sequence[Exception]) -> None:
        super().__init__()
        self.errors, self.calls = {name: list(values) for name, values in errors.items()}, list[str]()
        self.missing_candles = 0

    def _call(self, name: str) -> None:
        self.calls.append(name)
        for error in self.errors.get(name, [])[:1]:
            self.errors[name].pop(0)
            raise error

    @property
    def required_candles(self) -> int:
        return super().required_candles + self.missing_candles

    def gather_candles(self, *arguments: Any) -> Any:
        self._call("gather_candles")
        return super().gather_candles(*arguments)

    def check(self, over: Callable[[], bool] = lambda: False) -> str:
        self._call("check")
        assert not over()
        return super().check(over)

    def forecast(self, candles: Any, over: Callable[[], bool] = lambda: False) -> Forecast:
        self._call("forecast")
        assert not over()
        return super().forecast(candles, over)

    def check_guards(self, *arguments: Any) -> Any:
        self._call("check_guards")
        return super().check_guards(*arguments)


def payload_codes(harness: CycleHarness, nonce: int) -> list[int]:
    """The codes of the payloads in blocks."""
    return [record.code for record in harness.chain.chain.state.inclusions(TOPIC, nonce)]


def test_epoch_is_served_in_seven_stages(harness: CycleHarness) -> None:
    starts: list[str] = []
    harness.change(on_stage_start=starts.append)
    as_of = to_iso(harness.clock.now())
    outcome = run_cycle(harness.context)
    assert (outcome.outcome, outcome.reason, outcome.exit_code) == ("submitted", "", 0)
    assert starts == [stage.name for stage in harness.stages] == list(outcome.stages) == STAGES
    nonce = harness.nonce
    entry = harness.entry(nonce)
    (submission,) = harness.ledger.attempts(entry.key)
    assert entry.row.state is INCLUDED
    assert payload_codes(harness, nonce) == [0]
    assert (outcome.chain_id, outcome.topic_id, outcome.nonce, outcome.wallet) == (
        "localnet", TOPIC, nonce, harness.address,
    )  # fmt: skip
    assert (outcome.value, outcome.tx_hash, outcome.height) == (
        float(submission.value), submission.tx_hash, harness.chain.height(),
    )  # fmt: skip
    assert outcome.quantiles is not None
    assert outcome.quantiles["0.5"] == pytest.approx(outcome.value)
    assert (outcome.source, outcome.synthetic, outcome.warnings) == ("sample", True, ())
    assert outcome.bundle == harness.context.resources.forecaster.manifest.sha256
    assert outcome.as_of == as_of
    assert (submission.sequence, submission.timeout_height) == (0, harness.window.last_height)
    assert harness.missed == []


def test_stages_describe_their_results(harness: CycleHarness) -> None:
    run_cycle(harness.context)
    texts = {stage.name: stage.text for stage in harness.stages}
    submission = harness.ledger.attempts(harness.key(harness.nonce))[0]
    assert texts["chain"] == (
        f"localnet, height {harness.nonce + 10}: topic 67 nonce {harness.nonce} is open to {harness.window.last_height}"
    )
    assert texts["data"].startswith("sample: synthetic, 408 candles to 2026-03-01T12:00:00Z, ")
    assert "hashes, weights and canary are correct" in texts["model"]
    assert texts["forecast"].startswith("log-return over 168 h")
    assert "passed; a plausible log-return" in texts["guards"]
    assert texts["sign"] == (
        f"value {submission.value}, topic 67, nonce {harness.nonce}\n"
        f"sequence 0, gas {submission.gas}, fee {submission.fee_uallo} uallo"
    )
    assert texts["submit"] == f"included in block {harness.chain.height()}"
    assert harness.stages[-1].seconds == pytest.approx(5, abs=5)


def test_repairs_and_a_wrong_clock_are_in_the_text_of_the_data(
    harness: CycleHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecaster = harness.context.resources.forecaster
    gather, times = forecaster.gather_candles, list[float]()

    def gather_repaired(source: Any, window: Any, now: float) -> Any:
        times.append(now)
        return gather(source, window, now)[0], ("one candle was filled", "another was dropped")

    monkeypatch.setattr(forecaster, "gather_candles", gather_repaired)
    block_time = harness.chain.block_time()
    harness.chain.chain.config = replace(harness.chain.chain.config, block_time=None)  # the chain's time stands still
    harness.clock.wall += 86_400
    stage = StageTimer(harness.context)
    harness.change(chain_id="allora-testnet-1")
    fetch_candles(harness.context, stage)
    lines = harness.stages[0].text.splitlines()
    assert lines[0].startswith("warning: this machine's clock is wrong")
    assert lines[1].startswith("sample: ")
    assert lines[2:] == ["one candle was filled", "another was dropped"]
    assert times == [block_time]


def test_cycle_logs_its_stages_and_its_outcome(harness: CycleHarness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    outcome = run_cycle(harness.context)
    messages = [record.getMessage() for record in caplog.records if record.name == "forecastd.submission.cycle"]
    label = f"cycle {harness.context.number} topic 67"
    assert messages[:2] == [f"{label} chain starts", f"{label} chain: {harness.stages[0].text}"]
    assert messages[-1] == (
        f"{label} outcome: submitted, exit code 0, nonce {harness.nonce}: {outcome.tx_hash}; "
        "next submission window in 709 blocks, about 59 min"
    )


def test_served_epoch_is_not_served_again(harness: CycleHarness) -> None:
    first = run_cycle(harness.context)
    harness.stages.clear()
    outcome = run_cycle(harness.context)
    assert outcome == replace(
        first, outcome="already_submitted", reason="this epoch already has its submission", source=None,
        as_of=outcome.as_of, synthetic=None, quantiles=None, bundle=None, stages={"chain": 0.0},
    )  # fmt: skip
    assert [stage.name for stage in harness.stages] == ["chain"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("passive", "accepted, but outside the active set"), ("evicted", "evicted from the active set")],
)
def test_epoch_outside_the_active_set_is_submitted_with_a_reason(
    harness: CycleHarness, fault: str, reason: str
) -> None:
    harness.chain.chain.inject(NodeFault.parse(fault))
    harness.advance(EPOCH_BLOCKS)
    outcome = run_cycle(harness.context)
    assert (outcome.outcome, outcome.reason) == ("submitted", reason if fault == "passive" else "")
    entry = harness.entry(harness.nonce)
    harness.ledger.record(entry.key, replace(entry.row, state=SubmissionState(fault)), 1.0)
    again = run_cycle(harness.context)
    assert (again.outcome, again.reason) == ("already_submitted", reason)


# Which epoch


def test_window_of_the_caller_is_not_queried_again(harness: CycleHarness) -> None:
    assert run_cycle(harness.context, [harness.window]).outcome == "submitted"
    assert "GetUnfulfilledWorkerNonces" not in harness.requests()


def test_closed_window_of_the_caller_is_recorded_as_missed_at_once(harness: CycleHarness) -> None:
    """Also when a person is needed, and although the ledger has no earlier epoch."""
    harness.change(failures={harness.nonce: "no model"})
    harness.ledger.set_known_from("localnet", harness.address, 0)
    harness.chain.account(harness.address)
    harness.chain.chain.add_foreign_transaction(harness.address)
    window = harness.window
    harness.advance(window.last_height - harness.chain.height() - 1)
    assert run_cycle(harness.context, [window]).needs_human
    assert harness.missed == []
    harness.advance(1)
    outcome = run_cycle(harness.context, [window])
    assert outcome.needs_human
    assert (harness.entry(window.nonce).row.state, harness.entry(window.nonce).row.reason) == (MISSED, "no model")
    assert harness.missed == [harness.entry(window.nonce)]


@pytest.mark.parametrize("active", [True, False])
def test_no_open_window_is_nothing_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture, *, active: bool) -> None:
    caplog.set_level(logging.INFO)
    harness = make_harness(tmp_path, active=active)
    harness.advance(WINDOW_BLOCKS)
    outcome = run_cycle(harness.context)
    height = harness.nonce + 10 + WINDOW_BLOCKS
    reason = f"none is open at height {height}" if active else "the topic is not active, so it opens none"
    assert (outcome.outcome, outcome.reason) == ("no_window", f"no submission window of topic 67: {reason}")
    assert (outcome.exit_code, outcome.nonce, outcome.source) == (3, None, "sample")
    assert harness.stages[0].text == f"localnet, height {height}: no open submission window"
    ending = "; next submission window in 470 blocks, about 39 min" if active else reason
    assert caplog.messages[-1].endswith(ending)
    harness.ledger.close()


def test_newest_epoch_is_served_before_an_older_one(tmp_path: Path) -> None:
    harness = make_harness(tmp_path, window_blocks=2 * EPOCH_BLOCKS)
    harness.advance(EPOCH_BLOCKS)
    newest = harness.nonce
    assert [run_cycle(harness.context).nonce for _ in range(3)] == [newest, newest - EPOCH_BLOCKS, newest]
    assert harness.missed == []
    harness.ledger.close()


def test_epochs_since_the_last_run_are_missed(harness: CycleHarness) -> None:
    first = harness.nonce
    run_cycle(harness.context)
    harness.advance(3 * EPOCH_BLOCKS)
    assert run_cycle(harness.context).outcome == "submitted"
    assert [entry.nonce for entry in harness.missed] == [first + EPOCH_BLOCKS, first + 2 * EPOCH_BLOCKS]
    assert "recorded 2 epochs since the last run as missed" in harness.stages[7].text
    assert harness.entry(first).row.state is ADMITTED, "the cycle settled it first"


def test_outage_is_the_reason_of_the_epochs_that_were_missed(
    harness: CycleHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_cycle(harness.context)
    harness.advance(2 * EPOCH_BLOCKS - 400)
    harness.change(retry_until_closed=True)
    node = harness.chain.nodes[0]
    node.set_faults("unavailable")
    monkeypatch.setattr(harness.context.wake, "wait", lift_after(harness, 420, node.set_faults))
    outcome = run_cycle(harness.context)
    assert outcome.outcome == "submitted"
    (missed,) = harness.missed
    assert "no submission was made while its window was open; the chain could not be queried: " in missed.row.reason
    assert "UNAVAILABLE" in missed.row.reason


def lift_after(harness: CycleHarness, blocks: int, lift: Callable[[], None]) -> Callable[[float | None], bool]:
    """A `wait` that calls `lift` once this many blocks have passed."""
    end, wait = harness.clock.monotonic() + 5.0 * blocks, harness.context.wake.wait

    def wait_and_lift(timeout: float | None = None) -> bool:
        if harness.clock.monotonic() >= end:
            lift()
        return wait(timeout)

    return wait_and_lift


def test_chain_that_does_not_answer_ends_a_single_run(harness: CycleHarness) -> None:
    harness.chain.nodes[0].set_faults("unavailable")
    outcome = run_cycle(harness.context)
    assert (outcome.outcome, outcome.exit_code, outcome.nonce) == ("failed", 6, None)
    assert "No endpoint answered" in outcome.reason
    assert list(outcome.stages) == ["chain"]
    assert harness.stages == []


def test_topic_that_does_not_exist_needs_a_person(harness: CycleHarness) -> None:
    harness.change(settings=Settings.from_values({"topic_id": 5}))
    outcome = run_cycle(harness.context)
    assert (outcome.reason, outcome.exit_code) == ("Topic 5 does not exist on localnet. Check --topic-id.", 5)


def test_lost_ledger_is_filled_from_the_chain(harness: CycleHarness, tmp_path: Path) -> None:
    first = harness.nonce
    run_cycle(harness.context)
    harness.advance(EPOCH_BLOCKS)
    run_cycle(harness.context)
    (tmp_path / "other").mkdir()
    other = make_harness(tmp_path / "other")
    harness.change(ledger=other.ledger)
    harness.stages.clear()
    outcome = run_cycle(harness.context)
    assert (outcome.outcome, outcome.reason) == ("already_submitted", RECOVERED_REASON)
    assert outcome.value == float(harness.entry(harness.nonce).value or 0)
    assert (outcome.tx_hash, outcome.source, outcome.height) == (None, None, None)
    assert harness.stages[0].text.startswith("recovered 1 earlier epoch of this worker from the chain\n")
    assert [entry.row.state for entry in harness.ledger.entries("localnet", harness.address)] == [ADMITTED, ADMITTED]
    assert [entry.nonce for entry in harness.ledger.entries("localnet", harness.address)] == [first, harness.nonce]
    harness.advance(WINDOW_BLOCKS)
    harness.ledger.delete_account("localnet", harness.address)
    assert run_cycle(harness.context).outcome == "no_window"
    assert len(harness.ledger.entries("localnet", harness.address)) == 2, "the newest epoch too, for it has closed"
    other.ledger.close()


def test_forecast_of_another_worker_is_not_recovered(harness: CycleHarness) -> None:
    harness.chain.chain.state.put_inference(StoredInference(TOPIC, harness.nonce, "allo1other", "1", 1))
    previous = StoredInference(TOPIC, harness.nonce - EPOCH_BLOCKS, harness.address, "1", 1)
    harness.chain.chain.state.put_inference(previous)
    assert run_cycle(harness.context).outcome == "submitted"


# Failures and retries


@pytest.mark.parametrize(
    ("method", "stages", "known"),
    [
        ("gather_candles", ["chain"], ("nonce",)),
        ("check", ["chain", "data"], ("nonce", "synthetic")),
        ("forecast", ["chain", "data", "model"], ("nonce", "synthetic", "bundle")),
        (
            "check_guards",
            ["chain", "data", "model", "forecast"],
            ("nonce", "synthetic", "bundle", "value", "quantiles"),
        ),
    ],
)
@pytest.mark.parametrize(
    ("error", "outcome_name", "code"),
    [
        (SkipEpoch("refused", check="stale"), "skipped", 4),
        (RetryLater("down"), "failed", 6),
        (NeedsHuman("broken"), "failed", 5),
    ],
)
def test_failed_stage_ends_a_single_run_with_what_is_known(
    harness: CycleHarness, *, method: str, stages: list[str], known: tuple[str, ...], error: ForecastdError,
    outcome_name: str, code: int,
) -> None:  # fmt: skip
    harness.change(forecaster=ScriptedForecaster(**{method: [error]}))
    outcome = run_cycle(harness.context)
    assert (outcome.outcome, outcome.reason, outcome.exit_code) == (outcome_name, str(error), code)
    assert outcome.check == ("stale" if outcome_name == "skipped" else None)
    assert [stage.name for stage in harness.stages] == stages
    fields = ("nonce", "synthetic", "bundle", "value", "quantiles", "tx_hash", "height")
    assert tuple(name for name in fields if getattr(outcome, name) is not None) == known
    assert harness.ledger.find(harness.key(harness.nonce)) is None


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        ("gather_candles", ["gather_candles"] * 3 + ["check", "forecast", "check_guards"]),
        ("check", ["gather_candles"] + ["check"] * 3 + ["forecast", "check_guards"]),
        ("forecast", ["gather_candles"] + ["check", "forecast"] * 3 + ["check_guards"]),
        ("check_guards", ["gather_candles"] + ["check", "forecast", "check_guards"] * 3),
    ],
)
def test_failed_stage_is_retried_with_the_values_of_earlier_stages(
    harness: CycleHarness, method: str, calls: list[str]
) -> None:
    forecaster = ScriptedForecaster(**{method: [RetryLater("down"), SkipEpoch("stale")]})
    harness.change(forecaster=forecaster, retry_until_closed=True)
    outcome = run_cycle(harness.context)
    assert outcome.outcome == "submitted"
    assert forecaster.calls == calls


@pytest.mark.parametrize(
    ("method", "share"), [("gather_candles", 0.5), ("check", 0.8), ("forecast", 0.8), ("check_guards", 0.8)]
)
@pytest.mark.parametrize("error", [SkipEpoch("refused", check="stale"), RetryLater("down")])
def test_stage_that_never_succeeds_misses_the_epoch(
    harness: CycleHarness, method: str, share: float, error: ForecastdError
) -> None:
    harness.change(forecaster=ScriptedForecaster(**{method: [error] * 1000}), retry_until_closed=True)
    window = harness.window
    outcome = run_cycle(harness.context, [window])
    assert (outcome.outcome, outcome.exit_code) == ("missed", 6)
    assert outcome.reason == f"retried until the window closed: {error}"
    assert outcome.check == ("stale" if isinstance(error, SkipEpoch) else None)
    assert harness.missed == [harness.entry(window.nonce)]
    assert harness.missed[0].row.reason == str(error)
    assert window.height_limit(share) <= harness.chain.height() <= window.height_limit(share) + 8
    again = run_cycle(harness.context)
    assert (again.outcome, again.reason) == ("missed", str(error))


def test_signing_that_fails_does_not_forecast_again(harness: CycleHarness) -> None:
    forecaster = ScriptedForecaster()
    harness.change(forecaster=forecaster, retry_until_closed=True)
    harness.chain.nodes[0].set_faults("unavailable@method=GetParams@first=3")
    outcome = run_cycle(harness.context)
    assert outcome.outcome == "submitted"
    assert forecaster.calls == ["gather_candles", "check", "forecast", "check_guards"]
    assert not harness.context.resources.signing_lock.locked()


def test_signing_that_never_succeeds_uses_the_whole_window(
    harness: CycleHarness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    harness.change(retry_until_closed=True)
    harness.chain.nodes[0].set_faults("unavailable@method=GetParams")
    window = harness.window
    outcome = run_cycle(harness.context)
    assert outcome.outcome == "missed"
    assert outcome.value is not None
    height = harness.chain.height()
    assert window.last_height - 2 <= height <= window.last_height + 5
    blocks = window.nonce + EPOCH_BLOCKS - height
    assert f"next submission window in {blocks} blocks" in caplog.messages[-1], "by the latest height"


def test_stopping_process_leaves_the_epoch_to_the_next_run(harness: CycleHarness) -> None:
    harness.change(retry_until_closed=True)
    wake = harness.context.wake
    forecaster = ScriptedForecaster(check=[RetryLater("down")])
    harness.change(forecaster=forecaster, on_stage_start=lambda name: wake.set() if name == "model" else None)
    outcome = run_cycle(harness.context)
    assert (outcome.outcome, outcome.exit_code) == ("failed", 6)
    assert "the next run serves this epoch" in outcome.reason
    assert harness.missed == []


def test_forecast_stops_when_the_window_closes(harness: CycleHarness) -> None:
    answers: list[bool] = []

    class PollingForecaster(FakeForecaster):
        def check(self, over: Callable[[], bool] = lambda: False) -> str:
            answers.append(over())
            harness.advance(harness.window.last_height - 2 - harness.chain.height())
            answers.append(over())
            raise SkipEpoch("too late", check="model_process")

    harness.change(forecaster=PollingForecaster(), retry_until_closed=True)
    assert run_cycle(harness.context).outcome == "missed"
    assert answers == [False, True]


def test_fallback_model_that_needs_more_candles_gets_them(harness: CycleHarness) -> None:
    forecaster = ScriptedForecaster()
    harness.change(forecaster=forecaster)

    def replace_model(name: str) -> None:
        forecaster.missing_candles = 1 if name == "model" else 0 if len(forecaster.calls) > 2 else 1

    harness.change(on_stage_start=replace_model)
    assert run_cycle(harness.context).outcome == "submitted"
    assert forecaster.calls == ["gather_candles", "check", "gather_candles", "forecast", "check_guards"]


def test_model_replaced_during_the_forecast_gets_new_candles(harness: CycleHarness) -> None:
    forecaster = ScriptedForecaster(forecast=[TooFewCandles("more", check="model_process")])
    harness.change(forecaster=forecaster)
    assert run_cycle(harness.context).outcome == "submitted"
    assert forecaster.calls == ["gather_candles", "check", "forecast", "gather_candles", "forecast", "check_guards"]


# Signing


def test_unregistered_worker_is_registered_once(harness: CycleHarness) -> None:
    harness.chain.chain.state.workers.clear()
    harness.change(retry_until_closed=True)
    harness.chain.nodes[0].set_faults("unavailable@method=GetParams@first=1@from=1")
    outcome = run_cycle(harness.context)
    assert outcome.outcome == "submitted"
    kinds = [record.kind for record in harness.chain.chain.state.txs.values()]
    assert kinds == ["register", "payload"]
    sign = next(stage for stage in harness.stages if stage.name == "sign")
    assert sign.text.startswith(f"registered {harness.address} for topic 67; fee ")
    assert harness.ledger.attempts(harness.key(harness.nonce))[0].sequence == 1


def test_signing_retried_after_a_registration_does_not_register_again(harness: CycleHarness) -> None:
    harness.chain.chain.state.workers.clear()
    harness.change(retry_until_closed=True)
    commits = [0]

    def fail_once(name: str) -> None:
        commits[0] += name == "before sign"
        if name == "before sign" and commits[0] == 1:
            raise RetryLater("interrupted")

    failpoints.install_hook(fail_once)
    try:
        assert run_cycle(harness.context).outcome == "submitted"
    finally:
        failpoints.install_hook(None)
    assert [record.kind for record in harness.chain.chain.state.txs.values()] == ["register", "payload"]


@pytest.mark.parametrize(
    ("candles", "model", "signed"), [(True, False, False), (False, True, False), (False, False, True)]
)
def test_synthetic_data_is_never_signed_for_a_real_network(
    harness: CycleHarness, monkeypatch: pytest.MonkeyPatch, *, candles: bool, model: bool, signed: bool
) -> None:
    """Neither synthetic candles nor a model that was trained on them."""
    forecaster = FakeForecaster()
    parts = {"train": replace(forecaster.manifest.training.parts["train"], end=int(harness.clock.now()))}
    training = replace(forecaster.manifest.training, synthetic=model, parts=parts)
    forecaster.manifest = replace(forecaster.manifest, training=training)
    gather = forecaster.gather_candles

    def gather_real(*arguments: Any) -> Any:
        found, repairs = gather(*arguments)
        return replace(found, provenance=replace(found.provenance, synthetic=candles)), repairs

    monkeypatch.setattr(forecaster, "gather_candles", gather_real)
    harness.change(chain_id="allora-testnet-1", forecaster=forecaster, dry_run=True)
    outcome = run_cycle(harness.context)
    assert outcome.synthetic is candles
    assert (outcome.outcome == "dry_run") is signed
    assert ("which is never signed for allora-testnet-1" in outcome.reason) is not signed


def test_topics_of_one_wallet_take_different_sequences(harness: CycleHarness) -> None:
    """Another thread's submission is signed with the account's next sequence, but not in a block yet."""
    other = Submission("localnet", 69, 1, harness.address, "1", 0, b"a", "A", 10**10, 1, 1)
    harness.change(wallet_topics=frozenset({67, 69}))
    harness.ledger.set_known_from("localnet", harness.address, 0)
    harness.ledger.commit(other, 1.0)
    harness.ledger.record(other.key, LedgerRow(SubmissionState.ABANDONED, 0, 10**10), 1.0)
    run_cycle(harness.context)
    assert harness.ledger.attempts(harness.key(harness.nonce))[0].sequence == 1


@pytest.mark.parametrize("fault", ["low-fee@first=1", "out-of-gas@first=1"])
def test_refused_bytes_are_signed_again_with_more_gas(harness: CycleHarness, fault: str) -> None:
    harness.chain.chain.inject(NodeFault.parse(fault))
    forecaster = ScriptedForecaster()
    harness.change(forecaster=forecaster)
    outcome = run_cycle(harness.context)
    assert outcome.outcome == "submitted", outcome.reason
    first, second = harness.ledger.attempts(harness.key(harness.nonce))
    assert second.gas == pytest.approx(1.5 * first.gas, rel=0.01)
    assert second.value == first.value
    assert outcome.tx_hash == second.tx_hash
    assert forecaster.calls.count("forecast") == 1
    assert payload_codes(harness, harness.nonce).count(0) == 1
    assert [stage.name for stage in harness.stages][-4:] == ["sign", "submit", "sign", "submit"]


def test_abandoned_submission_of_an_earlier_run_is_signed_again(harness: CycleHarness) -> None:
    run_cycle(replace(harness.context, confirmation_seconds=0.0))
    entry = harness.entry(harness.nonce)
    assert entry.row.state is SIGNED
    harness.chain.chain.clear_mempool()
    harness.ledger.record(entry.key, replace(entry.row, state=SubmissionState.ABANDONED), 1.0)
    outcome = run_cycle(harness.context)
    assert outcome.outcome == "submitted"
    assert len(harness.ledger.attempts(entry.key)) == 2
    assert payload_codes(harness, harness.nonce) == [0]


def test_abandoned_submission_that_cannot_be_replaced_is_not_missed_yet(harness: CycleHarness) -> None:
    run_cycle(replace(harness.context, confirmation_seconds=0.0))
    entry = harness.entry(harness.nonce)
    harness.chain.chain.clear_mempool()
    harness.ledger.record(entry.key, replace(entry.row, state=SubmissionState.ABANDONED), 1.0)
    harness.change(
        forecaster=ScriptedForecaster(check=[SkipEpoch("no", check="model")] * 1000), retry_until_closed=True
    )
    outcome = run_cycle(harness.context)
    assert (outcome.outcome, outcome.check) == ("skipped", "model")
    assert harness.entry(harness.nonce).row.state is SubmissionState.ABANDONED
    assert harness.missed == []


def test_stopping_process_does_not_sign_again(harness: CycleHarness) -> None:
    harness.chain.chain.inject(NodeFault.parse("low-fee@first=1"))
    wake = harness.context.wake
    harness.change(on_stage_end=lambda stage: wake.set() if stage.name == "submit" else None)
    outcome = run_cycle(harness.context)
    assert outcome.outcome == "failed"
    assert harness.entry(harness.nonce).row.state is SubmissionState.ABANDONED
    assert (
        "Signed, but not confirmed yet; run again to retry the same transaction. The node answered: " in outcome.reason
    )


# Delivery by later runs


def test_unconfirmed_submission_is_delivered_by_the_next_run(harness: CycleHarness) -> None:
    harness.chain.nodes[0].set_faults("drop")
    forecaster = ScriptedForecaster()
    harness.change(forecaster=forecaster)
    outcome = run_cycle(harness.context)
    assert (outcome.outcome, outcome.exit_code) == ("failed", 6)
    assert outcome.reason == "Signed, but not confirmed yet; run again to retry the same transaction."
    assert outcome.tx_hash is not None
    harness.chain.nodes[0].set_faults()
    harness.stages.clear()
    again = run_cycle(harness.context)
    assert (again.outcome, again.tx_hash, again.value) == ("submitted", outcome.tx_hash, outcome.value)
    assert [stage.name for stage in harness.stages] == ["chain", "submit"]
    assert forecaster.calls.count("forecast") == 1


def test_failed_ledger_prevents_sending(harness: CycleHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> LedgerRow:
        raise RetryLater("the disk is full; nothing was sent")

    monkeypatch.setattr(harness.ledger, "commit", fail)
    outcome = run_cycle(harness.context)
    assert (outcome.outcome, outcome.reason) == ("failed", "the disk is full; nothing was sent")
    assert "BroadcastTx" not in harness.requests()


def test_delivery_that_fails_is_not_signed_again(harness: CycleHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.change(retry_until_closed=True)
    record, failures = harness.ledger.record, [RetryLater("the disk is full")]

    def fail_once(*arguments: Any, **options: Any) -> LedgerEntry:
        for error in failures:
            failures.clear()
            raise error
        return record(*arguments, **options)

    monkeypatch.setattr(harness.ledger, "record", fail_once)
    outcome = run_cycle(harness.context)
    assert outcome.outcome == "submitted", outcome.reason
    assert len(harness.ledger.attempts(harness.key(harness.nonce))) == 1


@pytest.mark.parametrize("method", ["record_unsigned", "attempts"])
def test_ledger_that_fails_at_the_end_is_the_outcome(
    harness: CycleHarness, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """When the epoch is given up, or when its signatures are read for the outcome."""

    def fail(*_: object, **__: object) -> None:
        raise RetryLater("the disk failed")

    def break_ledger(name: str) -> None:
        if name == ("model" if method == "record_unsigned" else "chain"):
            monkeypatch.setattr(harness.ledger, method, fail)

    if method == "attempts":
        run_cycle(harness.context)
    else:
        forecaster = ScriptedForecaster(check=[SkipEpoch("no", check="model")] * 1000)
        harness.change(forecaster=forecaster, retry_until_closed=True)
    harness.change(on_stage_start=break_ledger)
    outcome = run_cycle(harness.context)
    assert (outcome.outcome, outcome.reason, outcome.nonce) == ("failed", "the disk failed", harness.nonce)


def test_failpoints_of_a_cycle_are_in_order(harness: CycleHarness) -> None:
    names: list[str] = []
    harness.chain.chain.state.workers.clear()
    failpoints.install_hook(names.append)
    try:
        run_cycle(harness.context)
        harness.ledger.delete_account("localnet", harness.address)
        run_cycle(harness.context)
    finally:
        failpoints.install_hook(None)
    unique = list(dict.fromkeys(names))
    assert unique == [
        "before register", "before sign", "after sign", "after commit", "before send", "after send", "after record",
        "before recover",
    ]  # fmt: skip
    assert len(unique) == len(failpoints.FAILPOINTS)


def test_bytes_are_in_the_ledger_before_they_are_sent(harness: CycleHarness) -> None:
    states: dict[str, SubmissionState | None] = {}

    def look(name: str) -> None:
        entry = harness.ledger.find(harness.key(harness.nonce))
        states.setdefault(name, None if entry is None else entry.row.state)

    failpoints.install_hook(look)
    try:
        run_cycle(harness.context)
    finally:
        failpoints.install_hook(None)
    assert states == {
        "before sign": None, "after sign": None, "after commit": SIGNED, "before send": SIGNED, "after send": SIGNED,
        "after record": INCLUDED,
    }  # fmt: skip


def test_reconciliation_comes_before_signing(harness: CycleHarness) -> None:
    first = harness.nonce
    run_cycle(replace(harness.context, confirmation_seconds=0.0))
    harness.chain.chain.clear_mempool()
    harness.advance(EPOCH_BLOCKS)
    states: list[SubmissionState] = []
    failpoints.install_hook(
        lambda name: states.append(harness.entry(first).row.state) if name == "before sign" else None
    )
    try:
        outcome = run_cycle(harness.context)
    finally:
        failpoints.install_hook(None)
    assert outcome.outcome == "submitted"
    assert states == [MISSED]
    assert [entry.nonce for entry in harness.missed] == [first]


def test_sequences_of_another_signer_prevent_signing(harness: CycleHarness) -> None:
    harness.ledger.set_known_from("localnet", harness.address, 0)
    harness.chain.account(harness.address)
    harness.chain.chain.add_foreign_transaction(harness.address)
    outcome = run_cycle(harness.context)
    assert outcome.needs_human
    assert "the sequences 0 are not in this ledger" in outcome.reason
    assert harness.ledger.attempts(harness.key(harness.nonce)) == []
    assert not harness.context.resources.signing_lock.locked()


# Dry runs


def test_dry_run_signs_but_leaves_no_trace(harness: CycleHarness) -> None:
    harness.change(dry_run=True)
    outcome = run_cycle(harness.context)
    assert (outcome.outcome, outcome.reason, outcome.exit_code) == ("dry_run", "nothing was sent", 0)
    assert outcome.value is not None
    assert (outcome.tx_hash, outcome.height, outcome.source) == (None, None, "sample")
    assert [stage.name for stage in harness.stages] == STAGES[:-1]
    assert harness.ledger.entries("localnet", harness.address) == []
    assert "BroadcastTx" not in harness.requests()


@pytest.mark.parametrize("served_by", ["ledger", "open", "chain", "abandoned"])
def test_dry_run_of_a_served_epoch_signs_nothing(harness: CycleHarness, served_by: str) -> None:
    if served_by == "chain":
        harness.chain.chain.state.put_inference(StoredInference(TOPIC, harness.nonce, harness.address, "1", 1))
    else:
        run_cycle(replace(harness.context, confirmation_seconds=None if served_by == "ledger" else 0.0))
    if served_by == "abandoned":
        entry = harness.entry(harness.nonce)
        harness.ledger.record(entry.key, replace(entry.row, state=SubmissionState.ABANDONED), 1.0)
    harness.stages.clear()
    before = harness.ledger.entries("localnet", harness.address)
    harness.change(dry_run=True)
    outcome = run_cycle(harness.context)
    assert outcome.outcome == "dry_run"
    names = [stage.name for stage in harness.stages]
    if served_by == "abandoned":
        assert (names, outcome.reason) == (STAGES[:-1], "nothing was sent")
    else:
        assert names == STAGES[:-2]
        assert outcome.reason == "this epoch already has its submission; nothing would be signed or sent"
        assert outcome.source == "sample"
    assert harness.ledger.entries("localnet", harness.address) == before


# Small functions


@pytest.mark.parametrize(
    ("chain_id", "offset", "uses_chain"),
    [
        ("localnet", 10_000.0, False),
        ("allora-testnet-1", 599.0, False),
        ("allora-testnet-1", -599.0, False),
        ("allora-testnet-1", 606.0, True),
        ("allora-testnet-1", -86_400.0, True),
    ],
)
def test_chain_time_replaces_a_wrong_clock(
    harness: CycleHarness, chain_id: str, offset: float, *, uses_chain: bool
) -> None:
    block_time = harness.chain.block_time()
    harness.chain.chain.state.time = block_time  # the chain's clock is right
    harness.chain.chain.config = replace(harness.chain.chain.config, block_time=None)
    harness.clock.wall = block_time + offset
    now, warning = reference_time(harness.chain, harness.clock, chain_id)
    assert now == pytest.approx(block_time if uses_chain else block_time + offset)
    assert ("using the chain's time" in warning) is uses_chain


@pytest.mark.parametrize("fault", ["", "unavailable@method=GetLatestNetworkInferences"])
def test_network_values_are_those_of_others(harness: CycleHarness, fault: str) -> None:
    assert network_values(harness.context) == ()
    nonce = harness.nonce - EPOCH_BLOCKS
    for worker, value in ((harness.address, "1"), ("allo1a", "0.25"), ("allo1b", "0.5")):
        harness.chain.chain.state.put_inference(StoredInference(TOPIC, nonce, worker, value, nonce))
    harness.chain.nodes[0].set_faults(*([fault] if fault else []))
    assert network_values(harness.context) == (() if fault else (0.25, 0.5))


def test_warnings_of_model_and_guards_are_in_the_outcome(harness: CycleHarness) -> None:
    nonce = harness.nonce - EPOCH_BLOCKS
    for number in range(5):
        worker = f"allo1{number}"
        harness.chain.chain.state.put_inference(StoredInference(TOPIC, nonce, worker, f"7.{number}", nonce))
    forecaster = FakeForecaster()
    forecaster.warnings = ("an old model",)
    harness.change(forecaster=forecaster)
    outcome = run_cycle(harness.context)
    assert outcome.warnings[0] == "an old model"
    assert len(outcome.warnings) == 2
    assert "warning: an old model" in harness.stages[2].text
    assert "warning: " in harness.stages[4].text


def test_time_of_a_retried_stage_is_added_up(harness: CycleHarness) -> None:
    stage = StageTimer(harness.context)
    for seconds in (1.00004, 2.0):
        with stage("data"):
            harness.clock.advance(seconds)

    def fail() -> None:
        with stage("data"):
            harness.clock.advance(4.0)
            raise RetryLater

    with pytest.raises(RetryLater):
        fail()
    assert stage.seconds == {"data": 7.0}
    assert [result.seconds for result in harness.stages] == [1.0, 3.0]


def test_next_window_is_predicted_from_the_newest_nonce(harness: CycleHarness) -> None:
    stage = StageTimer(harness.context)
    epoch = find_epoch(harness.context, stage)
    assert epoch == Epoch(harness.nonce + 10, harness.nonce + EPOCH_BLOCKS, must_register=False, window=harness.window)
    ahead = SubmissionWindow(TOPIC, harness.nonce + 5, harness.nonce + 50)  # an event was faster than this endpoint
    assert find_epoch(harness.context, stage, [ahead]).next_window_height == harness.nonce + 5 + EPOCH_BLOCKS


def test_open_next_window_is_in_the_log(harness: CycleHarness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run_cycle(harness.context)
    entry = harness.entry(harness.nonce)
    harness.ledger.record(entry.key, replace(entry.row, height=harness.nonce + EPOCH_BLOCKS), 1.0)
    run_cycle(harness.context)
    assert caplog.messages[-1].endswith("; the next submission window is open")


def test_missed_epoch_without_a_reason_has_one_in_the_outcome(harness: CycleHarness) -> None:
    entry = harness.ledger.record_unsigned(harness.key(harness.nonce), MISSED, 1.0, reason="")
    epoch = Epoch(1, None, must_register=False, window=harness.window, entry=entry, is_served=True)
    assert make_outcome(harness.context, CycleValues(epoch, entry=entry)).reason == "this epoch was missed"


def test_each_context_has_its_own_number(harness: CycleHarness) -> None:
    context = harness.context
    later = type(context)(context.resources, context.ledger, context.rolling_window, context.clock, Event())
    assert later.number == make_number(later) > context.number
    assert later.label == f"cycle {later.number} topic 67"


def make_number(context: Any) -> int:
    return int(context.label.split()[1])
