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
    probe: Future[None] | None = None


@dataclass(frozen=True)
class EndpointReply(Generic[T]):
    """What one endpoint returned in time: a value or an error. An unfinished call counts as an error."""

    endpoint: PooledEndpoint
    value: T | None = None
    error: ForecastdError | None = None

    @property
    def ok(self) -> bool:
        """Whether the endpoint returned a value."""
        return self.error is None


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
        self.lock = threading.Lock()
        self._clock = clock
        self._closed = False
        self._executor = ThreadPoolExecutor((MAX_IN_FLIGHT + 1) * len(self.endpoints), thread_name_prefix="endpoint")

    def close(self) -> None:
        """Abort the calls in progress. All threads end soon after."""
        with self.lock:
            self._closed = True
        for endpoint in self.endpoints:
            endpoint.node.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def healths(self) -> dict[PooledEndpoint, EndpointHealth]:
        """The current health of each endpoint."""
        with self.lock:
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
        waiting = list(endpoints)
        in_flight: dict[Future[T], PooledEndpoint] = {}
        errors = dict(skipped)
        deadline = TimeBudget(self.timeout_seconds)
        while waiting or in_flight:
            if waiting and (started := self._start_call(waiting.pop(0), call, errors)):
                in_flight.update(started)
            completed = (
                self._wait_for_any(in_flight, deadline, self.hedge_seconds if waiting else None) if in_flight else set()
            )
            if completed is None:
                break
            if not completed and waiting:
                self._mark_slow(in_flight.values())
            for future in completed:
                endpoint = in_flight.pop(future)
                error = future.exception()
                if error is None:
                    return future.result()
                errors[endpoint] = _expected_error(error)
        for endpoint in in_flight.values():
            errors[endpoint] = NoUsableResponse(
                f"The node {endpoint.name} did not answer within {self.timeout_seconds:g} s.", reason="no answer"
            )
        raise combine_errors(errors)

    def all_replies(
        self,
        endpoints: Sequence[PooledEndpoint],
        call: Callable[[PooledEndpoint], T],
        *,
        is_final: Callable[[T], bool],
        grace: float,
        answered_timeout: float | None,
    ) -> list[EndpointReply[T]]:
        """Return the answers of all endpoints, in the order of `endpoints`.

        After an answer for which `is_final` is true, the others have `grace` seconds left. After the first answer of
        any kind, the others have `answered_timeout` seconds in total.
        """
        errors: dict[PooledEndpoint, ForecastdError] = {}
        values: dict[PooledEndpoint, T] = {}
        in_flight: dict[Future[T], PooledEndpoint] = {}
        for endpoint in endpoints:
            in_flight.update(self._start_call(endpoint, call, errors))
        deadline, answered_deadline = TimeBudget(self.timeout_seconds), TimeBudget(answered_timeout)
        grace_deadline: TimeBudget | None = None
        while in_flight:
            if grace_deadline is None and values and not _seconds_left(answered_deadline):
                self._mark_slow(in_flight.values())
                break
            hedge_seconds = (
                _seconds_left(grace_deadline)
                if grace_deadline is not None
                else (_seconds_left(answered_deadline) if values else None)
            )
            completed = self._wait_for_any(in_flight, deadline, hedge_seconds)
            if completed is None or (not completed and grace_deadline is not None):
                break
            for future in completed:
                endpoint = in_flight.pop(future)
                error = future.exception()
                if error is not None:
                    errors[endpoint] = _expected_error(error)
                    continue
                values[endpoint] = future.result()
                if grace_deadline is None and is_final(values[endpoint]):
                    grace_deadline = TimeBudget(grace)
        for endpoint in in_flight.values():
            errors[endpoint] = NoUsableResponse(
                f"The node {endpoint.name} has not answered yet.", reason="no answer yet"
            )
        return [EndpointReply(endpoint, values.get(endpoint), errors.get(endpoint)) for endpoint in endpoints]

    def start_probes(self, endpoints: Sequence[PooledEndpoint]) -> list[Future[None]]:
        """Start a query of chain id and height on each endpoint that has none in progress."""
        started = []
        for endpoint in endpoints:
            with self.lock:
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
        with self.lock:
            endpoint.chain = chain

    def fetch_height(self, endpoint: PooledEndpoint) -> int:
        """Query the height of an endpoint and record it."""
        requested_at = self._clock.monotonic()
        height = endpoint.node.height()
        with self.lock:
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

    def _start_call(
        self,
        endpoint: PooledEndpoint,
        call: Callable[[PooledEndpoint], T],
        errors: dict[PooledEndpoint, ForecastdError],
    ) -> dict[Future[T], PooledEndpoint]:
        """Start one call in a thread.

        Returns an empty dict, and records the reason in `errors`, when that is not possible.
        """
        with self.lock:
            if self._closed:
                errors[endpoint] = NoUsableResponse("The connection to the chain is closed.", reason="closed")
                return {}
            if endpoint.in_flight >= MAX_IN_FLIGHT:
                reason = f"{MAX_IN_FLIGHT} calls are still in progress"
                errors[endpoint] = NoUsableResponse(
                    f"The node {endpoint.name} was not called: {reason}.", reason=reason
                )
                return {}
            endpoint.in_flight += 1
            return {self._executor.submit(self._run_call, endpoint, call): endpoint}

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
            with self.lock:
                endpoint.in_flight -= 1

    def _mark_slow(self, endpoints: Iterable[PooledEndpoint]) -> None:
        """Record a failure for endpoints that are slow. They rest until they answer, or until their next probe."""
        for endpoint in endpoints:
            self._update_health(
                endpoint, lambda health, now: health.record_failure(f"no answer within {self.hedge_seconds:g} s", now)
            )

    def _update_health(
        self, endpoint: PooledEndpoint, update: Callable[[EndpointHealth, float], EndpointHealth]
    ) -> None:
        with self.lock:
            if self._closed:  # a call aborted by `close` says nothing about the endpoint
                return
            before, now = endpoint.health, self._clock.monotonic()
            after = endpoint.health = update(before, now)
        if after.is_available != before.is_available:
            change_text = "answers again" if after.is_available else f"is set aside: {after.error}"
            log.warning("endpoint %s %s", endpoint.name, change_text, extra={"action": "endpoint"})

    def _wait_for_any(
        self, in_flight: dict[Future[T], PooledEndpoint], deadline: TimeBudget, hedge_seconds: float | None
    ) -> set[Future[T]] | None:
        """The calls that finished first. Empty after `hedge_seconds`; None after the deadline."""
        seconds = _seconds_left(deadline)
        if not seconds:
            return None
        return wait(in_flight, seconds if hedge_seconds is None else min(seconds, hedge_seconds), FIRST_COMPLETED).done


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
