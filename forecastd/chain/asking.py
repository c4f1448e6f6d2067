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

from forecastd.chain.health import Health
from forecastd.chain.node import Node, WrongChain
from forecastd.chain.wire import NoAnswer, SaidNo, shorten
from forecastd.clock import Clock, Deadline
from forecastd.errors import ForecastdError, RetryLater

SOFT = 2.0  # seconds after which another endpoint is asked as well
TOTAL = 10.0  # seconds for a call in all
MOST_FLYING = 8  # calls under way to one endpoint
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Member:
    """One endpoint of a pool. Changed under the pool's lock only."""

    name: str
    node: Node
    health: Health = field(default_factory=Health)
    chain: str | None = None
    flying: int = 0
    probe: Future[None] | None = None


@dataclass(frozen=True)
class Reply(Generic[T]):
    """What came back from one endpoint within the time: a value, or an error, or neither yet."""

    member: Member
    value: T | None = None
    error: ForecastdError | None = None

    @property
    def good(self) -> bool:
        """Whether it is an answer."""
        return self.error is None


class Asking:
    """The threads, and the members' health. `soft` and `total` in seconds."""

    def __init__(self, members: Sequence[Member], clock: Clock, *, soft: float = SOFT, total: float = TOTAL) -> None:
        self.members = tuple(members)
        self.soft, self.total = soft, total
        self.lock = threading.Lock()
        self._clock = clock
        self._closed = False
        self._threads = ThreadPoolExecutor((MOST_FLYING + 1) * len(self.members), thread_name_prefix="endpoint")

    def close(self) -> None:
        """Break off what is under way; no thread is left for long."""
        with self.lock:
            self._closed = True
        for member in self.members:
            member.node.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def healths(self) -> dict[Member, Health]:
        """Everybody's health at this moment."""
        with self.lock:
            return {member: member.health for member in self.members}

    # Ways of asking

    def first(
        self, members: Sequence[Member], call: Callable[[Member], T], unasked: Mapping[Member, ForecastdError]
    ) -> T:
        """The first good answer. The next member is asked when one fails, and besides when one takes longer than `soft`.

        `unasked` says of the others why they are not asked.

        Raises:
            RetryLater: nobody gave an answer in time. With one member, its own error; else each one's, briefly.
            NeedsHuman: all that answered are on the wrong chain.
        """
        left = list(members)
        flying: dict[Future[T], Member] = {}
        errors = dict(unasked)
        deadline = Deadline(self.total)
        while left or flying:
            if left and (started := self._start(left.pop(0), call, errors)):
                flying.update(started)
            done = self._wait(flying, deadline, self.soft if left else None) if flying else set()
            if done is None:
                break
            if not done and left:
                self._slow(flying.values())
            for future in done:
                member = flying.pop(future)
                error = future.exception()
                if error is None:
                    return future.result()
                errors[member] = _ours(error)
        for member in flying.values():
            errors[member] = NoAnswer(
                f"The node {member.name} did not answer within {self.total:g} s.", why="no answer"
            )
        raise combined(errors)

    def all(
        self, members: Sequence[Member], call: Callable[[Member], T], *, enough: Callable[[T], bool], grace: float,
        patience: float | None,
    ) -> list[Reply[T]]:  # fmt: skip
        """Everybody's answer, in the order of `members`.

        Once an answer is `enough`, the others have `grace` seconds more; once somebody has answered, `patience` in all.
        """
        errors: dict[Member, ForecastdError] = {}
        values: dict[Member, T] = {}
        flying: dict[Future[T], Member] = {}
        for member in members:
            flying.update(self._start(member, call, errors))
        deadline, patient = Deadline(self.total), Deadline(patience)
        last: Deadline | None = None
        while flying:
            if last is None and values and not _left(patient):
                self._slow(flying.values())
                break
            soft = _left(last) if last is not None else (_left(patient) if values else None)
            done = self._wait(flying, deadline, soft)
            if done is None or (not done and last is not None):
                break
            for future in done:
                member = flying.pop(future)
                error = future.exception()
                if error is not None:
                    errors[member] = _ours(error)
                    continue
                values[member] = future.result()
                if last is None and enough(values[member]):
                    last = Deadline(grace)
        for member in flying.values():
            errors[member] = NoAnswer(f"The node {member.name} has not answered yet.", why="no answer yet")
        return [Reply(member, values.get(member), errors.get(member)) for member in members]

    def probe(self, members: Sequence[Member]) -> list[Future[None]]:
        """Ask each for its chain and height, unless that is under way already."""
        started = []
        for member in members:
            with self.lock:
                if self._closed:
                    break
                if member.probe is None or _finished(member.probe):
                    member.health = member.health.probe(self._clock.monotonic())
                    member.flying += 1
                    member.probe = self._threads.submit(self._timed, member, self._look)
                started.append(member.probe)
        return started

    def _look(self, member: Member) -> None:
        chain = member.node.chain_id()
        self.height_of(member)
        with self.lock:
            member.chain = chain

    def height_of(self, member: Member) -> int:
        """The node's height, taken down as the member's."""
        asked = self._clock.monotonic()
        height = member.node.height()
        with self.lock:
            member.health = member.health.at(height, asked, self._clock.monotonic())
        return height

    def wait_for(self, probes: Sequence[Future[None]]) -> None:
        """Wait for probes, `soft` seconds at the most; who has not answered by then rests."""
        done, late = wait(probes, self.soft)
        if late:
            self._slow(member for member in self.members if member.probe in late)
        for probe in done:
            _finished(probe)

    # One call

    def _start(
        self, member: Member, call: Callable[[Member], T], errors: dict[Member, ForecastdError]
    ) -> dict[Future[T], Member]:
        """Send one call on its way; nothing, and a reason, when the member is full or everything is closed."""
        with self.lock:
            if self._closed:
                errors[member] = NoAnswer("The connection to the chain is closed.", why="closed")
                return {}
            if member.flying >= MOST_FLYING:
                why = f"{MOST_FLYING} calls are still unanswered"
                errors[member] = NoAnswer(f"The node {member.name} is not asked: {why}.", why=why)
                return {}
            member.flying += 1
            return {self._threads.submit(self._timed, member, call): member}

    def _timed(self, member: Member, call: Callable[[Member], T]) -> T:
        """In a thread of the pool: make the call and take down how it went."""
        start = self._clock.monotonic()
        try:
            value = call(member)
        except WrongChain as error:
            found = error.found
            self._learn(member, lambda health, now: health.on_chain(found, now))
            raise
        except ForecastdError as error:
            # A refusal of one query says nothing of the others; a refusal to tell chain and height does.
            if not isinstance(error, SaidNo) or call == self._look:
                why = brief(error)
                self._learn(member, lambda health, now: health.failed(why, now))
            raise
        else:
            self._learn(member, lambda health, now: health.ok(now - start))
            return value
        finally:
            with self.lock:
                member.flying -= 1

    def _slow(self, members: Iterable[Member]) -> None:
        """Members that let others wait: they rest until they answer after all, or until their next probe."""
        for member in members:
            self._learn(member, lambda health, now: health.failed(f"no answer within {self.soft:g} s", now))

    def _learn(self, member: Member, change: Callable[[Health, float], Health]) -> None:
        with self.lock:
            if self._closed:  # what closing breaks off says nothing of the endpoint
                return
            before, now = member.health, self._clock.monotonic()
            after = member.health = change(before, now)
        if after.closed != before.closed:
            told = "answers again" if after.closed else f"is set aside: {after.error}"
            log.warning("endpoint %s %s", member.name, told, extra={"action": "endpoint"})

    def _wait(self, flying: dict[Future[T], Member], deadline: Deadline, soft: float | None) -> set[Future[T]] | None:
        """What is done first; empty when `soft` is over, None when the deadline is."""
        left = _left(deadline)
        if not left:
            return None
        return wait(flying, left if soft is None else min(left, soft), FIRST_COMPLETED).done


def combined(errors: dict[Member, ForecastdError]) -> ForecastdError:
    """One error for all that were asked."""
    found = list(errors.values())
    if len(found) == 1:
        return found[0]
    lasting = [error for error in found if not isinstance(error, RetryLater)]
    if found and len(lasting) == len(found):
        return lasting[0]
    each = "; ".join(f"{member.name}: {brief(error)}" for member, error in errors.items())
    return RetryLater(f"No endpoint gave a usable answer. {each}.")


def brief(error: ForecastdError) -> str:
    """An error's cause in a few words."""
    text = f"on chain {error.found}" if isinstance(error, WrongChain) else getattr(error, "why", str(error))
    return shorten(str(text)[:160].rstrip("."))


def _finished(probe: Future[None]) -> bool:
    """Whether it is over. A failure of the endpoint has been taken down; a defect of this program comes up here."""
    error = probe.exception() if probe.done() and not probe.cancelled() else None
    if error is not None:
        _ours(error)
    return probe.done()


def _ours(error: BaseException) -> ForecastdError:
    if isinstance(error, ForecastdError):
        return error
    raise error


def _left(deadline: Deadline) -> float:
    """Seconds left, 0.0 when it is over; a deadline without end has an hour."""
    try:
        left = deadline.left()
    except TimeoutError:
        return 0.0
    return 3600.0 if left is None else left
