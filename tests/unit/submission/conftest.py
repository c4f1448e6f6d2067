"""A cycle over a chain in this process, with a clock that only waiting moves forward."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.chain.wallet import Wallet
from forecastd.clock import from_iso
from forecastd.inference.stages import StageResult
from forecastd.ledger.ledger import EpochKey, Ledger, LedgerEntry
from forecastd.localnet.state import Effect
from forecastd.localnet.topics import TopicSpec
from forecastd.market.sources.sample import SampleSource
from forecastd.market.window import RollingWindow
from forecastd.settings import Settings
from forecastd.submission.context import CycleContext, TopicResources
from forecastd.submission.window import SubmissionWindow
from forecastd.testing import FakeChain, FakeForecaster, ManualClock, ManualEvent

TOPIC, BLOCK_SECONDS, EPOCH_BLOCKS, WINDOW_BLOCKS = 67, 5.0, 720, 240
WALLET = Wallet.from_mnemonic(
    "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"
)


class FastConnection(sqlite3.Connection):
    """Does not wait for the disk."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return super().execute(sql.replace("synchronous=EXTRA", "synchronous=OFF"), *values)


def connect_fast(path: Path, timeout_seconds: float) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=timeout_seconds, isolation_level=None, factory=FastConnection)


@dataclass
class CycleHarness:
    """The parts of a cycle, and what it reported. Nonces are multiples of `EPOCH_BLOCKS`."""

    clock: ManualClock
    chain: FakeChain
    context: CycleContext
    stages: list[StageResult] = field(default_factory=list)
    missed: list[LedgerEntry] = field(default_factory=list)

    @property
    def ledger(self) -> Ledger:
        return self.context.ledger

    @property
    def address(self) -> str:
        return self.context.resources.wallet.address

    @property
    def nonce(self) -> int:
        """The newest nonce."""
        return int(self.clock.now() / BLOCK_SECONDS) // EPOCH_BLOCKS * EPOCH_BLOCKS

    @property
    def window(self) -> SubmissionWindow:
        """The window of the newest nonce, which may be closed."""
        return SubmissionWindow(TOPIC, self.nonce, self.nonce + WINDOW_BLOCKS - 1)

    def key(self, nonce: int) -> EpochKey:
        return self.context.resources.epoch_key(nonce)

    def entry(self, nonce: int) -> LedgerEntry:
        return self.ledger.get(self.key(nonce))

    def change(self, **fields: Any) -> None:
        """Change fields of the context, or else of its resources."""
        in_context = {name: value for name, value in fields.items() if name in CycleContext.__dataclass_fields__}
        in_resources = {name: value for name, value in fields.items() if name not in in_context}
        resources = replace(self.context.resources, **in_resources)
        self.context = replace(self.context, resources=resources, **in_context)

    def advance(self, blocks: int) -> None:
        """Let this many blocks pass, each one made."""
        for step in [50] * (blocks // 50) + [blocks % 50]:
            self.clock.advance(step * BLOCK_SECONDS)
            self.chain.chain.tick()

    def register(self) -> None:
        """Register the worker without a transaction, so that its first sequence is 0."""
        self.chain.chain.state.apply(Effect(worker=(TOPIC, self.address)))

    def requests(self) -> list[str]:
        """The methods called since the last call of this function."""
        names = [name for node in self.chain.nodes for name in node.requests]
        for node in self.chain.nodes:
            node.requests.clear()
        return names


def make_harness(
    directory: Path, *, endpoints: int = 1, window_blocks: int = WINDOW_BLOCKS, **topic: Any
) -> CycleHarness:
    """A harness whose newest window opened 10 blocks ago and whose worker is registered."""
    clock = ManualClock(from_iso("2026-03-01T12:00:00Z"))
    height = int(clock.now() / BLOCK_SECONDS)
    start = height // EPOCH_BLOCKS * EPOCH_BLOCKS
    clock.advance((start + 10 - height) * BLOCK_SECONDS)
    spec = TopicSpec(TOPIC, epoch_length=EPOCH_BLOCKS, worker_submission_window=window_blocks, **topic)
    chain = FakeChain(clock, topics=(spec,), endpoints=endpoints)
    resources = TopicResources(
        Settings.from_values({"topic_id": TOPIC}), LOCAL_CHAIN_ID, WALLET, SampleSource("btcusd"),
        FakeForecaster(), chain,
    )  # fmt: skip
    ledger = Ledger(directory / "ledger.sqlite", connect=connect_fast)
    rolling_window = RollingWindow(directory / "window.sqlite")  # it is opened by its first use
    context = CycleContext(resources, ledger, rolling_window, clock, ManualEvent(clock))
    harness = CycleHarness(clock, chain, context)
    harness.change(on_stage_end=harness.stages.append, on_missed=harness.missed.append)
    harness.register()
    return harness


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[CycleHarness]:
    harness = make_harness(tmp_path)
    yield harness
    harness.ledger.close()
    harness.context.rolling_window.close()
