"""Fakes for tests of code that uses forecastd."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from threading import Event
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message

from forecastd.chain.client import ChainClient, raise_refusal
from forecastd.chain.endpoint_pool import EndpointBroadcast, EndpointPool, EndpointReport, TxLookup
from forecastd.chain.grpc_transport import RpcError
from forecastd.chain.methods import EmissionsVersion, find_method, is_emissions
from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.chain.types import BroadcastResult, TxResult
from forecastd.clock import Clock
from forecastd.errors import RetryLater
from forecastd.inference.forecaster import Forecaster
from forecastd.localnet.chain import ChainConfig, LocalChain
from forecastd.localnet.endpoint_view import EndpointView, NoResponse
from forecastd.localnet.faults import FaultLevel, NodeFault
from forecastd.localnet.service import RpcStatusError
from forecastd.localnet.store import ChainStore
from forecastd.localnet.topics import DEFAULT_TOPICS, TopicSpec
from forecastd.market.candles import Candles
from forecastd.market.features import parse_features
from forecastd.settings import DEMO_MODEL
from models.base import Forecast
from models.market.manifest import MarketManifest

T = TypeVar("T")


class ManualClock:
    """A `Clock` that stands still until it is set or advanced.

    `wall`: unix seconds. `elapsed`: monotonic seconds. Both may be assigned, to let the wall clock jump alone.
    """

    def __init__(self, wall: float = 1_600_000_000.0, elapsed: float = 1_000.0) -> None:
        self.wall, self.elapsed = wall, elapsed

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.elapsed

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self.wall += seconds
        self.elapsed += seconds


class ManualEvent(Event):
    """An event whose wait moves a `ManualClock` forward instead of sleeping."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            self._clock.advance(timeout or 0.0)
        return self.is_set()


class FakeNode(ChainClient):
    """One endpoint of a `FakeChain`. `requests` lists the names of the methods that were called."""

    def __init__(self, chain: LocalChain) -> None:
        self.chain, self.view = chain, EndpointView(chain)
        self.requests: list[str] = []

    def chain_id(self) -> str:
        return self.chain.state.chain_id

    def version(self) -> EmissionsVersion:
        return self.chain.state.version

    def close(self) -> None:
        """Nothing to close."""

    def set_faults(self, *faults: str) -> None:
        """Replace the faults, such as `unavailable@method=GetTx`. Without arguments, the endpoint has none."""
        self.view.set_faults(NodeFault.parse(fault) for fault in faults)

    def ask(
        self, request: Message, read: Callable[[Any], T], read_refusal: Callable[[RpcError], T] = raise_refusal
    ) -> T:
        self.chain.tick()
        method = find_method(request, self.version() if is_emissions(request) else None)
        name, path = method.name.rpartition("/")[2], f"/{method.name}"
        self.requests.append(name)
        faults = self.view.on_request(path)
        if self.view.refuses_connections or any(fault.kind.level is FaultLevel.WIRE for fault in faults):
            raise RetryLater(f"no usable answer to {name}")
        try:
            try:
                return read(self.view.answer(path, request.SerializeToString(), faults))
            except RpcStatusError as error:
                return read_refusal(RpcError(error.status, error.details))
        except (NoResponse, RpcError) as error:
            raise RetryLater(f"no usable answer to {name}: {error}") from error


class FakeChain(EndpointPool):
    """The local chain in this process, without a socket, a file or a thread. Its answers are those of the local node.

    Blocks follow the clock, so with a `ManualClock` a test decides when the next one is made. `chain` is the chain
    itself, to fund accounts or to add transactions of others; `nodes` are the endpoints, which can be given faults. A
    query goes to one after the other until one answers.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        topics: tuple[TopicSpec, ...] = DEFAULT_TOPICS,
        chain_id: str = LOCAL_CHAIN_ID,
        version: EmissionsVersion = "v10",
        faucet: bool = True,
        endpoints: int = 1,
    ) -> None:
        """`faucet`: an account gets its funds on first use."""
        config = ChainConfig(chain_id=chain_id, version=version, topics=topics, faucet=faucet)
        self.chain = LocalChain(config, _NoStore(), clock)
        self.nodes = [FakeNode(self.chain) for _ in range(endpoints)]

    @property
    def size(self) -> int:
        return len(self.nodes)

    def close(self) -> None:
        """Nothing to close."""

    def ask(
        self, request: Message, read: Callable[[Any], T], read_refusal: Callable[[RpcError], T] = raise_refusal
    ) -> T:
        return self._first_answer(lambda node: node.ask(request, read, read_refusal))

    def chain_id(self) -> str:
        return self.nodes[0].chain_id()

    def height(self) -> int:
        return self._first_answer(FakeNode.height)

    def version(self) -> EmissionsVersion:
        return self.nodes[0].version()

    def find_tx(self, tx_hash: str) -> TxResult | None:
        return self._first_answer(lambda node: node.find_tx(tx_hash))

    def broadcast(self, tx_bytes: bytes) -> BroadcastResult:
        return self._first_answer(lambda node: node.broadcast(tx_bytes))

    def broadcast_all(self, tx_bytes: bytes) -> list[EndpointBroadcast]:
        answers = self._answers(lambda node: node.broadcast(tx_bytes))
        return [EndpointBroadcast("fake node", answer) for answer in answers]

    def look_up(self, tx_hash: str) -> TxLookup:
        def find_or_height(node: FakeNode) -> TxResult | int:
            result = node.find_tx(tx_hash)
            return node.height() if result is None else result

        answers = self._answers(find_or_height)
        results = [answer for answer in answers if isinstance(answer, TxResult)]
        heights = tuple(answer for answer in answers if isinstance(answer, int))
        return TxLookup(results[0] if results else None, heights, len(answers))

    def report(self) -> tuple[EndpointReport, ...]:
        return ()

    def _first_answer(self, call: Callable[[FakeNode], T]) -> T:
        failures = []
        for node in self.nodes:
            try:
                return call(node)
            except RetryLater as error:
                failures.append(str(error))
        raise RetryLater(f"No endpoint answered: {'; '.join(failures)}.")

    def _answers(self, call: Callable[[FakeNode], T]) -> list[T]:
        """The answers of all endpoints that answer."""
        answers = []
        for node in self.nodes:
            with suppress(RetryLater):
                answers.append(call(node))
        return answers


class _NoStore(ChainStore):
    """Keeps nothing: the chain lives in memory only."""

    def __init__(self) -> None:
        pass

    def load(self) -> None:
        return None

    def save(self, *_: object) -> None:
        pass


class FakeForecaster(Forecaster):
    """Real candles, checks and guards around a random forecast, without a child process.

    Its manifest is that of the demo bundle. Each forecast has a different value, so a second signature never equals the
    first by chance.
    """

    def __init__(self, before_forecast: Callable[[], None] = lambda: None) -> None:
        """`before_forecast` is called at the start of a forecast. An error that it raises is the model's failure."""
        self.manifest = MarketManifest.read(DEMO_MODEL)
        self.features = parse_features((*self.manifest.past, *self.manifest.known), "the demo bundle")
        self.warnings = ()
        self._before_forecast, self.fallback = before_forecast, None

    def check(self, over: Callable[[], bool] = lambda: False) -> str:
        return self.manifest.sha256

    def forecast(self, candles: Candles, over: Callable[[], bool] = lambda: False) -> Forecast:
        """Quantiles at 0.1, 0.5 and 0.9 that widen with the horizon, around a random log-return within 0.004 of zero."""
        self._before_forecast()
        levels = (0.1, 0.5, 0.9)
        value = random.SystemRandom().uniform(-0.004, 0.004)
        steps = np.linspace(0, 1, self.manifest.horizon + 1)[1:, None]
        quantiles = steps * (value + np.array([-0.01, 0.0, 0.01]))
        return Forecast(candles.end, candles.step, levels, quantiles, value, "0" * 64, self.manifest.sha256)

    def close(self) -> None:
        """Nothing to close."""
