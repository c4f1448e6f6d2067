"""The ledger on a disk that fails, or loses power, at every single operation in turn.

A worker's bookkeeping of some epochs runs over a `FaultyDisk`; bytes count as sent once `commit` returned. Whatever happened
then, the file that survives must open again with SQLite as it is installed, be whole, hold every signature that was sent,
and every change that was reported as done.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.campaign.faultydisk import FaultyDisk, Ill
from benchmarks.figures import Count
from forecastd.errors import ForecastdError, RetryLater
from forecastd.ledger import Key, Ledger, Row, State, Submission

CHAIN, WALLET = "localnet", "allo1disk"
EPOCHS = 6
TRIES = 3  # of one change by a worker that goes on after an error


def run(*, quick: bool, seed: int) -> Iterator[Count]:
    """Every fault at every operation, a power cut with five choices of what is lost; quick: every eighth operation."""
    memory = Path("/dev/shm")  # noqa: S108 - no more than a faster place
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        yield campaign(Path(place), step=8 if quick else 1, cuts=2 if quick else 5, seed=seed)


def campaign(place: Path, *, step: int, cuts: int, seed: int) -> Count:
    """Every fault at every `step`th operation; a power cut `cuts` times."""
    whole = _Trial(place, None, 0, seed)
    whole.run(go_on=False)
    operations = whole.disk.operations
    broken = [f"without a fault: {evidence}" for evidence in whole.judge()]
    trials: Counter[str] = Counter()
    offset = random.Random(seed).randrange(step)
    for at in range(1 + offset, len(operations) + 1, step):
        for ill in Ill:
            if ill in (Ill.FULL, Ill.STAYS_FULL) and not operations[at - 1].startswith("write"):
                continue
            for go_on in (False, True):
                if ill is Ill.CUT and go_on:
                    continue
                for repetition in range(cuts if ill is Ill.CUT else 1):
                    trial = _Trial(place, ill, at, seed + repetition)
                    trial.run(go_on=go_on)
                    how = f"{ill}, at {operations[at - 1]} (number {at}){', and it goes on' if go_on else ''}"
                    broken += [f"{how}: {evidence}" for evidence in trial.judge()]
                    trials[str(ill)] += 1
    kinds = Counter(operation.split()[0] for operation in operations)
    return Count(
        f"a ledger on a disk that fails, seed {seed}",
        {
            "operations of one run": ", ".join(f"{number} x {what}" for what, number in sorted(kinds.items())),
            "trials": trials.total(),
            "by fault": ", ".join(f"{what} {number}" for what, number in trials.items()),
            "broken": len(broken),
        },
        "nothing was sent that is not on disk, nothing reported as done is lost, every file opens again and is whole",
        tuple(broken[:20]),
    )


@dataclass
class _Promises:
    """What the ledger has said it did: an epoch's state and number of signatures. `begun` may be there or not."""

    done: dict[Key, tuple[State, int]] = field(default_factory=dict)
    begun: dict[Key, set[tuple[State, int]]] = field(default_factory=dict)
    sent: list[Submission] = field(default_factory=list)


class _Trial:
    """One run of the bookkeeping with one fault."""

    _number = 0

    def __init__(self, place: Path, ill: Ill | None, at: int, seed: int) -> None:
        _Trial._number += 1
        self._place = place / str(_Trial._number)
        self._place.mkdir()
        self._path = self._place / "ledger.sqlite"
        self.disk = FaultyDisk(f"faulty-{_Trial._number}", ill, at, seed)
        self._promises = _Promises()
        self._ledger: Ledger | None = None
        self._go_on = False

    def run(self, *, go_on: bool) -> None:
        """The bookkeeping, to its end or to the error that ends the process. `go_on`: try again after an error."""
        self._go_on = go_on
        with suppress(ForecastdError):
            self._ledger = self._opened()
            self._keep_books(self._ledger)
        if self._ledger is not None:
            with suppress(Exception):  # a process that dies does not close either
                self._ledger.close()
        self.disk.unregister()

    def judge(self) -> list[str]:
        """What is wrong with what survived. The power is cut now if it was not before."""
        survived = self._place / "survived"
        survived.mkdir()
        self.disk.survivors(survived)
        for extra in self._place.glob("ledger.sqlite.witness"):
            shutil.copy(extra, survived)
        try:
            ledger = Ledger(survived / "ledger.sqlite", wait=0.0)
        except ForecastdError as error:
            return [f"does not open again: {error}"]
        try:
            found = [f"was set aside: {path.name}" for path in survived.glob("*damaged*")]
            if ledger.check() != "ok":
                found.append(ledger.check())
            found += [*self._lost_signatures(ledger), *self._lost_changes(ledger)]
        finally:
            ledger.close()
            shutil.rmtree(self._place)
        return found

    def _opened(self) -> Ledger:
        for _ in range(TRIES if self._go_on else 1):
            with suppress(RetryLater):
                return Ledger(self._path, wait=0.0, connect=self.disk.connect)
        raise RetryLater

    def _keep_books(self, ledger: Ledger) -> None:
        """Some epochs' worth of entries: served at once, on the second signature, missed."""
        self._do(lambda: ledger.know_from(CHAIN, WALLET, 0))
        self._do(lambda: ledger.note_use(CHAIN, WALLET, 0, "0" * 64, "register"))
        sequence = 1
        for epoch in range(EPOCHS):
            key: Key = (CHAIN, 67, 1 + 720 * epoch, WALLET)
            if epoch % 3 == 2:
                self._change(key, (State.MISSED, 0), lambda key=key: ledger.adopt(key, State.MISSED, 0.0, reason="x"))  # type: ignore[misc]
                continue
            attempts = 1 + epoch % 2
            for attempt in range(1, attempts + 1):
                self._sign(ledger, key, sequence, attempt)
                sequence += 1
                if attempt < attempts:
                    self._learn(ledger, key, State.DEAD)
            self._learn(ledger, key, State.INCLUDED)
            self._learn(ledger, key, State.ADMITTED)

    def _sign(self, ledger: Ledger, key: Key, sequence: int, attempt: int) -> None:
        raw = random.Random(sequence).randbytes(900)
        name = hashlib.sha256(raw).hexdigest().upper()
        submission = Submission(*key, "0.01", sequence, raw, name, key[2] + 719, 200_000, 10)

        def commit() -> None:
            entry = ledger.find(key)
            if entry is None or entry.row.attempts < attempt:  # a worker that goes on sends what is there
                ledger.commit(submission, 1.0)

        self._change(key, (State.SIGNED, attempt), commit)
        self._promises.sent.append(submission)

    def _learn(self, ledger: Ledger, key: Key, state: State) -> None:
        attempts = self._promises.done[key][1]

        def record() -> None:
            entry = ledger.find(key)
            assert entry is not None
            row: Row = replace(entry.row, state=state, height=key[2] + 3)
            ledger.record(key, row, 2.0)

        self._change(key, (state, attempts), record)

    def _change(self, key: Key, to: tuple[State, int], work: Callable[[], None]) -> None:
        self._promises.begun.setdefault(key, set()).add(to)
        self._do(work)
        self._promises.done[key] = to
        self._promises.begun.pop(key)

    def _do(self, work: Callable[[], None]) -> None:
        """`work`; once, or as often as a worker would that goes on."""
        for _ in range(TRIES - 1 if self._go_on else 0):
            try:
                work()
            except RetryLater:
                continue
            return
        work()

    def _lost_signatures(self, ledger: Ledger) -> Iterator[str]:
        for submission in self._promises.sent:
            if submission not in ledger.attempts(submission.key):
                yield f"sequence {submission.sequence} of nonce {submission.nonce} was sent and is not on disk"

    def _lost_changes(self, ledger: Ledger) -> Iterator[str]:
        for key in {**self._promises.begun, **self._promises.done}:
            entry = ledger.find(key)
            there = None if entry is None else (entry.row.state, entry.row.attempts)
            may = {self._promises.done.get(key), *self._promises.begun.get(key, ())}
            if there not in may:
                yield f"nonce {key[2]}: {there} is on disk, {self._promises.done.get(key)} was reported"
