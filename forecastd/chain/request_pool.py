"""Sends a call to several endpoints at once, each in a thread of the pool, and records the health of each endpoint.

Invariant: a call that the caller has stopped waiting for runs on to its own deadline, and its result still counts for
the health of the endpoint. A hanging endpoint therefore costs its callers seconds, not the submission window.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from forecastd.chain.endpoint_health import EndpointHealth
from forecastd.chain.grpc_transport import NoUsableResponse, UnexpectedRefusal, shorten
from forecastd.chain.node import Node, WrongChain
from forecastd.clock import Clock, TimeBudget
from forecastd.errors import ForecastdError, RetryLater

HEDGE_SECONDS = 2.0  # after this time the call is also sent to the next endpoint
TIMEOUT_SECONDS = 10.0  # total time for one call
IDLE_SECONDS = 15.0  # without a call, after which a connection is closed
MAX_IN_FLIGHT = 8  # concurrent calls to one endpoint
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(eq=False)
class PooledEndpoint:
    """One endpoint of a pool. Change it only under the lock of the pool."""

    name: str
    node: Node
    health: EndpointHealth = field(default_factory=EndpointHealth)
    chain: str | None = None
    in_flight: int = 0
    last_used: float | None = None  # monotonic second of the last call's end; None: its connection is closed
    probe: Future[None] | None = None


@dataclass
class CallGroup(Generic[T]):
    """One call to several endpoints: those in progress, and for each of the others a value or an error."""

    values: dict[PooledEndpoint, T] = field(default_factory=dict)
    errors: dict[PooledEndpoint, ForecastdError] = field(default_factory=dict)
    in_flight: dict[Future[T], PooledEndpoint] = field(default_factory=dict)

    def wait(self, seconds: float) -> bool:
        """Wait for the next calls to finish. Returns whether any did in time."""
        completed = wait(self.in_flight, seconds, FIRST_COMPLETED).done
        for future in completed:
            endpoint = self.in_flight.pop(future)
            error = future.exception()
            if error is None:
                self.values[endpoint] = future.result()
            else:
                self.errors[endpoint] = _expected_error(error)
        return bool(completed)

    def abandon(self, text: str, reason: str) -> None:
        """Count the calls in progress as errors. `text` follows the name of the endpoint."""
        for endpoint in self.in_flight.values():
            self.errors[endpoint] = NoUsableResponse(f"The node {endpoint.name} {text}.", reason=reason)


class RequestPool:
    """The threads of a pool and the health of its endpoints.

    `hedge_seconds`: time before a call is also sent to the next endpoint. `timeout_seconds`: total time for a call.
    """

    def __init__(
        self,
        endpoints: Sequence[PooledEndpoint],
        clock: Clock,
        *,
        hedge_seconds: float = HEDGE_SECONDS,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self.hedge_seconds, self.timeout_seconds = hedge_seconds, timeout_seconds
        self._lock = threading.Lock()
        self._clock = clock
        self._closed = False
        self._executor = ThreadPoolExecutor((MAX_IN_FLIGHT + 1) * len(self.endpoints), thread_name_prefix="endpoint")

    def close(self) -> None:
        """Abort the calls in progress. All threads end soon after."""
        with self._lock:
            self._closed = True
        for endpoint in self.endpoints:
            endpoint.node.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def close_idle(self) -> None:
        """Close each connection that had no call for a while; the next call opens it again.

        grpcio's threads wake up several times a second for as long as a connection is open.
        """
        with self._lock:  # no call can start meanwhile
            for endpoint in self.endpoints:
                last_used = endpoint.last_used
                if last_used is None or endpoint.in_flight or self._clock.monotonic() - last_used < IDLE_SECONDS:
                    continue
                endpoint.node.close()
                endpoint.last_used = None

    def healths(self) -> dict[PooledEndpoint, EndpointHealth]:
        """The current health of each endpoint."""
        with self._lock:
            return {endpoint: endpoint.health for endpoint in self.endpoints}

    # Calls

    def first_reply(
        self,
        endpoints: Sequence[PooledEndpoint],
        call: Callable[[PooledEndpoint], T],
        skipped: Mapping[PooledEndpoint, ForecastdError],
    ) -> T:
        """Return the first good answer.

        The next endpoint is called when one fails, or when one takes longer than `hedge_seconds`. `skipped` holds the
        endpoints that are not called, each with the reason.

        Raises:
            RetryLater: no endpoint answered in time. With a single endpoint it is that endpoint's error, otherwise a
                summary of all errors.
            NeedsHuman: every endpoint that answered is on the wrong chain.
        """
        calls, waiting = CallGroup[T](errors=dict(skipped)), list(endpoints)
        deadline = TimeBudget(self.timeout_seconds)
        while waiting or calls.in_flight:
            if waiting:
                self._start_call(waiting.pop(0), call, calls)
            seconds = _seconds_left(deadline)
            if not seconds:
                break
            if calls.in_flight and not calls.wait(min(seconds, self.hedge_seconds) if waiting else seconds) and waiting:
                self._mark_slow(calls.in_flight.values())
            if calls.values:
                return next(iter(calls.values.values()))
        calls.abandon(f"did not answer within {self.timeout_seconds:g} s", "no answer")
        raise combine_errors(calls.errors)

    def all_replies(
        self,
        endpoints: Sequence[PooledEndpoint],
        call: Callable[[PooledEndpoint], T],
        *,
        is_final: Callable[[T], bool],
        grace: float,
        answered_timeout: float | None,
    ) -> CallGroup[T]:
        """Return the answers of all endpoints.

        After an answer for which `is_final` is true, the others have `grace` seconds left. After the first answer of
        any kind, the others have `answered_timeout` seconds in total.
        """
        calls = CallGroup[T]()
        for endpoint in endpoints:
            self._start_call(endpoint, call, calls)
        deadline, answered_deadline = TimeBudget(self.timeout_seconds), TimeBudget(answered_timeout)
        grace_deadline: TimeBudget | None = None
        while calls.in_flight:
            if grace_deadline is None and any(map(is_final, calls.values.values())):
                grace_deadline = TimeBudget(grace)
            limits = [deadline]
            if calls.values:
                limits.append(grace_deadline or answered_deadline)
            if not calls.wait(min(map(_seconds_left, limits))):
                break
        if calls.values and grace_deadline is None and not _seconds_left(answered_deadline):
            self._mark_slow(calls.in_flight.values())
        calls.abandon("has not answered yet", "no answer yet")
        return calls

    def start_probes(self, endpoints: Sequence[PooledEndpoint]) -> list[Future[None]]:
        """Start a query of chain id and height on each endpoint that has none in progress."""
        started = []
        for endpoint in endpoints:
            with self._lock:
                if self._closed:
                    break
                if endpoint.probe is None or _is_finished(endpoint.probe):
                    endpoint.health = endpoint.health.start_probe(self._clock.monotonic())
                    endpoint.in_flight += 1
                    endpoint.probe = self._executor.submit(self._run_call, endpoint, self._probe)
                started.append(endpoint.probe)
        return started

    def _probe(self, endpoint: PooledEndpoint) -> None:
        chain = endpoint.node.chain_id()
        self.fetch_height(endpoint)
        with self._lock:
            endpoint.chain = chain

    def fetch_height(self, endpoint: PooledEndpoint) -> int:
        """Query the height of an endpoint and record it."""
        requested_at = self._clock.monotonic()
        height = endpoint.node.height()
        with self._lock:
            endpoint.health = endpoint.health.record_height(height, requested_at, self._clock.monotonic())
        return height

    def wait_for_probes(self, probes: Sequence[Future[None]]) -> None:
        """Wait at most `hedge_seconds` for probes. An endpoint whose probe is late is marked as slow."""
        completed, unfinished = wait(probes, self.hedge_seconds)
        if unfinished:
            self._mark_slow(endpoint for endpoint in self.endpoints if endpoint.probe in unfinished)
        for probe in completed:
            _is_finished(probe)

    # One call

    def _start_call(self, endpoint: PooledEndpoint, call: Callable[[PooledEndpoint], T], calls: CallGroup[T]) -> None:
        """Start one call in a thread, or record why that is not possible."""
        with self._lock:
            if self._closed:
                calls.errors[endpoint] = NoUsableResponse("The connection to the chain is closed.", reason="closed")
            elif endpoint.in_flight >= MAX_IN_FLIGHT:
                reason = f"{MAX_IN_FLIGHT} calls are still in progress"
                calls.errors[endpoint] = NoUsableResponse(
                    f"The node {endpoint.name} was not called: {reason}.", reason=reason
                )
            else:
                endpoint.in_flight += 1
                calls.in_flight[self._executor.submit(self._run_call, endpoint, call)] = endpoint

    def _run_call(self, endpoint: PooledEndpoint, call: Callable[[PooledEndpoint], T]) -> T:
        """Make the call and record its outcome. Runs in a thread of the pool."""
        start = self._clock.monotonic()
        try:
            value = call(endpoint)
        except WrongChain as error:
            chain_id = error.chain_id
            self._update_health(endpoint, lambda health, now: health.record_wrong_chain(chain_id, now))
            raise
        except ForecastdError as error:
            # A refused query says nothing about other queries. A refused probe (chain id and height) counts as a
            # failure.
            if not isinstance(error, UnexpectedRefusal) or call == self._probe:
                cause = brief_cause(error)
                self._update_health(endpoint, lambda health, now: health.record_failure(cause, now))
            raise
        else:
            self._update_health(endpoint, lambda health, now: health.record_success(now - start))
            return value
        finally:
            with self._lock:
                endpoint.in_flight -= 1
                endpoint.last_used = self._clock.monotonic()

    def _mark_slow(self, endpoints: Iterable[PooledEndpoint]) -> None:
        """Record a failure for endpoints that are slow. They rest until they answer, or until their next probe."""
        for endpoint in endpoints:
            self._update_health(
                endpoint, lambda health, now: health.record_failure(f"no answer within {self.hedge_seconds:g} s", now)
            )

    def _update_health(
        self, endpoint: PooledEndpoint, update: Callable[[EndpointHealth, float], EndpointHealth]
    ) -> None:
        with self._lock:
            if self._closed:  # a call aborted by `close` says nothing about the endpoint
                return
            before, now = endpoint.health, self._clock.monotonic()
            after = endpoint.health = update(before, now)
        if after.is_available != before.is_available:
            change_text = "answers again" if after.is_available else f"is set aside: {after.error}"
            log.warning("endpoint %s %s", endpoint.name, change_text, extra={"action": "endpoint"})


def combine_errors(errors: dict[PooledEndpoint, ForecastdError]) -> ForecastdError:
    """Combine the errors of all endpoints into one."""
    failures = list(errors.values())
    if len(failures) == 1:
        return failures[0]
    permanent = [error for error in failures if not isinstance(error, RetryLater)]
    if failures and len(permanent) == len(failures):
        return permanent[0]
    causes = "; ".join(f"{endpoint.name}: {brief_cause(error)}" for endpoint, error in errors.items())
    return RetryLater(f"No endpoint gave a usable answer. {causes}.")


def brief_cause(error: ForecastdError) -> str:
    """The cause of an error in a few words."""
    text = f"on chain {error.chain_id}" if isinstance(error, WrongChain) else getattr(error, "reason", str(error))
    return shorten(str(text)[:160].rstrip("."))


def _is_finished(probe: Future[None]) -> bool:
    """Whether the probe has finished.

    Failures of the endpoint are recorded elsewhere; a bug in this program is raised here.
    """
    error = probe.exception() if probe.done() and not probe.cancelled() else None
    if error is not None:
        _expected_error(error)
    return probe.done()


def _expected_error(error: BaseException) -> ForecastdError:
    if isinstance(error, ForecastdError):
        return error
    raise error


def _seconds_left(deadline: TimeBudget) -> float:
    """Seconds left: 0.0 after the deadline, an hour when there is no deadline."""
    try:
        seconds = deadline.remaining()
    except TimeoutError:
        return 0.0
    return 3600.0 if seconds is None else seconds
