"""Asks several endpoints at once, each call in a thread of the pool's, and keeps what it learns of their health.

The one thing to know before changing it: a call that nobody waits for any more goes on to its own deadline, and what comes
of it still counts for the endpoint's health. That is how a hung endpoint costs its callers seconds and not the window.
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

HEDGE_SECONDS = 2.0  # seconds after which another endpoint is asked as well
TIMEOUT_SECONDS = 10.0  # seconds for a call in all
MAX_IN_FLIGHT = 8  # calls under way to one endpoint
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(eq=False)
class PooledEndpoint:
    """One endpoint of a pool. Changed under the pool's lock only."""

    name: str
    node: Node
    health: EndpointHealth = field(default_factory=EndpointHealth)
    chain: str | None = None
    in_flight: int = 0
    probe: Future[None] | None = None


@dataclass(frozen=True)
class EndpointReply(Generic[T]):
    """What came back from one endpoint within the time: a value, or an error, or neither yet."""

    endpoint: PooledEndpoint
    value: T | None = None
    error: ForecastdError | None = None

    @property
    def ok(self) -> bool:
        """Whether it is an answer."""
        return self.error is None


class RequestPool:
    """The threads, and the members' health. `soft` and `total` in seconds."""

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
        """Break off what is under way; no thread is left for long."""
        with self.lock:
            self._closed = True
        for endpoint in self.endpoints:
            endpoint.node.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def healths(self) -> dict[PooledEndpoint, EndpointHealth]:
        """Everybody's health at this moment."""
        with self.lock:
            return {endpoint: endpoint.health for endpoint in self.endpoints}

    # Ways of asking

    def first_reply(
        self,
        endpoints: Sequence[PooledEndpoint],
        call: Callable[[PooledEndpoint], T],
        skipped: Mapping[PooledEndpoint, ForecastdError],
    ) -> T:
        """The first good answer. The next member is asked when one fails, and besides when one takes longer than `soft`.

        `unasked` says of the others why they are not asked.

        Raises:
            RetryLater: nobody gave an answer in time. With one member, its own error; else each one's, briefly.
            NeedsHuman: all that answered are on the wrong chain.
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
        self, endpoints: Sequence[PooledEndpoint], call: Callable[[PooledEndpoint], T], *, is_final: Callable[[T], bool], grace: float,
        answered_timeout: float | None,
    ) -> list[EndpointReply[T]]:  # fmt: skip
        """Everybody's answer, in the order of `members`.

        Once an answer is `enough`, the others have `grace` seconds more; once somebody has answered, `patience` in all.
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
        """Ask each for its chain and height, unless that is under way already."""
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
        """The node's height, taken down as the member's."""
        requested_at = self._clock.monotonic()
        height = endpoint.node.height()
        with self.lock:
            endpoint.health = endpoint.health.record_height(height, requested_at, self._clock.monotonic())
        return height

    def wait_for_probes(self, probes: Sequence[Future[None]]) -> None:
        """Wait for probes, `soft` seconds at the most; who has not answered by then rests."""
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
        """Send one call on its way; nothing, and a reason, when the member is full or everything is closed."""
        with self.lock:
            if self._closed:
                errors[endpoint] = NoUsableResponse("The connection to the chain is closed.", reason="closed")
                return {}
            if endpoint.in_flight >= MAX_IN_FLIGHT:
                why = f"{MAX_IN_FLIGHT} calls are still unanswered"
                errors[endpoint] = NoUsableResponse(f"The node {endpoint.name} is not asked: {why}.", reason=why)
                return {}
            endpoint.in_flight += 1
            return {self._executor.submit(self._run_call, endpoint, call): endpoint}

    def _run_call(self, endpoint: PooledEndpoint, call: Callable[[PooledEndpoint], T]) -> T:
        """In a thread of the pool: make the call and take down how it went."""
        start = self._clock.monotonic()
        try:
            value = call(endpoint)
        except WrongChain as error:
            chain_id = error.chain_id
            self._update_health(endpoint, lambda health, now: health.record_wrong_chain(chain_id, now))
            raise
        except ForecastdError as error:
            # A refusal of one query says nothing of the others; a refusal to tell chain and height does.
            if not isinstance(error, UnexpectedRefusal) or call == self._probe:
                why = brief_cause(error)
                self._update_health(endpoint, lambda health, now: health.record_failure(why, now))
            raise
        else:
            self._update_health(endpoint, lambda health, now: health.record_success(now - start))
            return value
        finally:
            with self.lock:
                endpoint.in_flight -= 1

    def _mark_slow(self, endpoints: Iterable[PooledEndpoint]) -> None:
        """Members that let others wait: they rest until they answer after all, or until their next probe."""
        for endpoint in endpoints:
            self._update_health(
                endpoint, lambda health, now: health.record_failure(f"no answer within {self.hedge_seconds:g} s", now)
            )

    def _update_health(
        self, endpoint: PooledEndpoint, update: Callable[[EndpointHealth, float], EndpointHealth]
    ) -> None:
        with self.lock:
            if self._closed:  # what closing breaks off says nothing of the endpoint
                return
            before, now = endpoint.health, self._clock.monotonic()
            after = endpoint.health = update(before, now)
        if after.is_available != before.is_available:
            change_text = "answers again" if after.is_available else f"is set aside: {after.error}"
            log.warning("endpoint %s %s", endpoint.name, change_text, extra={"action": "endpoint"})

    def _wait_for_any(
        self, in_flight: dict[Future[T], PooledEndpoint], deadline: TimeBudget, hedge_seconds: float | None
    ) -> set[Future[T]] | None:
        """What is done first; empty when `soft` is over, None when the deadline is."""
        seconds = _seconds_left(deadline)
        if not seconds:
            return None
        return wait(in_flight, seconds if hedge_seconds is None else min(seconds, hedge_seconds), FIRST_COMPLETED).done


def combine_errors(errors: dict[PooledEndpoint, ForecastdError]) -> ForecastdError:
    """One error for all that were asked."""
    failures = list(errors.values())
    if len(failures) == 1:
        return failures[0]
    permanent = [error for error in failures if not isinstance(error, RetryLater)]
    if failures and len(permanent) == len(failures):
        return permanent[0]
    causes = "; ".join(f"{endpoint.name}: {brief_cause(error)}" for endpoint, error in errors.items())
    return RetryLater(f"No endpoint gave a usable answer. {causes}.")


def brief_cause(error: ForecastdError) -> str:
    """An error's cause in a few words."""
    text = f"on chain {error.chain_id}" if isinstance(error, WrongChain) else getattr(error, "why", str(error))
    return shorten(str(text)[:160].rstrip("."))


def _is_finished(probe: Future[None]) -> bool:
    """Whether it is over. A failure of the endpoint has been taken down; a defect of this program comes up here."""
    error = probe.exception() if probe.done() and not probe.cancelled() else None
    if error is not None:
        _expected_error(error)
    return probe.done()


def _expected_error(error: BaseException) -> ForecastdError:
    if isinstance(error, ForecastdError):
        return error
    raise error


def _seconds_left(deadline: TimeBudget) -> float:
    """Seconds left, 0.0 when it is over; a deadline without end has an hour."""
    try:
        seconds = deadline.remaining()
    except TimeoutError:
        return 0.0
    return 3600.0 if seconds is None else seconds
