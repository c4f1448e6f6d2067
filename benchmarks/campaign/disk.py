"""The ledger on a disk that fails, or loses power, at every single operation in turn.

The ledger work of some epochs runs over a `FaultyDisk`. Bytes count as sent once `commit` has returned. Whatever
happened then, the surviving file must open again with the installed SQLite, be intact, and hold every signature that
was sent and every change that was reported as done.
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

from benchmarks.campaign.faulty_disk import DiskFault, FaultyDisk
from benchmarks.figures import PremiseCount
from forecastd.errors import ForecastdError, RetryLater
from forecastd.ledger.ledger import EpochKey, Ledger, LedgerRow, Submission, SubmissionState

CHAIN, WALLET = "localnet", "allo1disk"
EPOCHS = 6
MAX_ATTEMPTS = 3  # of one change, by a worker that retries after an error


def run(*, quick: bool, seed: int) -> Iterator[PremiseCount]:
    """Every fault at every operation; a power cut with five choices of lost data. Quick: every eighth operation."""
    memory = Path("/dev/shm")  # noqa: S108  # only faster than a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        yield run_campaign(Path(directory), step=8 if quick else 1, cut_repetitions=2 if quick else 5, seed=seed)


def run_campaign(directory: Path, *, step: int, cut_repetitions: int, seed: int) -> PremiseCount:
    """Every fault at every `step`-th operation; each power cut `cut_repetitions` times."""
    baseline = _DiskTrial(directory, None, 0, seed)
    baseline.run(retry_errors=False)
    operations = baseline.disk.operations
    violations = [f"without a fault: {evidence}" for evidence in baseline.find_losses()]
    trials: Counter[str] = Counter()
    offset = random.Random(seed).randrange(step)
    for operation_number in range(1 + offset, len(operations) + 1, step):
        for fault in DiskFault:
            if fault in (DiskFault.FULL, DiskFault.STAYS_FULL) and not operations[operation_number - 1].startswith(
                "write"
            ):
                continue
            for retry_errors in (False, True):
                if fault is DiskFault.POWER_CUT and retry_errors:
                    continue
                for repetition in range(cut_repetitions if fault is DiskFault.POWER_CUT else 1):
                    trial = _DiskTrial(directory, fault, operation_number, seed + repetition)
                    trial.run(retry_errors=retry_errors)
                    retries = ", with retries" if retry_errors else ""
                    how = f"{fault}, at {operations[operation_number - 1]} (number {operation_number}){retries}"
                    violations += [f"{how}: {evidence}" for evidence in trial.find_losses()]
                    trials[str(fault)] += 1
    kinds = Counter(operation.split()[0] for operation in operations)
    return PremiseCount(
        f"a ledger on a disk that fails, seed {seed}",
        {
            "operations of one run": ", ".join(f"{number} x {what}" for what, number in sorted(kinds.items())),
            "trials": trials.total(),
            "by fault": ", ".join(f"{what} {number}" for what, number in trials.items()),
            "violations": len(violations),
        },
        "everything sent is on disk, nothing reported as done is lost, every file opens again and is intact",
        tuple(violations[:20]),
    )


@dataclass
class _ReportedState:
    """What the ledger has reported: an epoch's state and number of signatures.

    A started change may be on disk or not.
    """

    completed_changes: dict[EpochKey, tuple[SubmissionState, int]] = field(default_factory=dict)
    started_changes: dict[EpochKey, set[tuple[SubmissionState, int]]] = field(default_factory=dict)
    sent_submissions: list[Submission] = field(default_factory=list)


class _DiskTrial:
    """One run of the ledger work with one fault."""

    _number = 0

    def __init__(self, directory: Path, fault: DiskFault | None, operation_number: int, seed: int) -> None:
        _DiskTrial._number += 1
        self._directory = directory / str(_DiskTrial._number)
        self._directory.mkdir()
        self._path = self._directory / "ledger.sqlite"
        self.disk = FaultyDisk(f"faulty-{_DiskTrial._number}", fault, operation_number, seed)
        self._reported = _ReportedState()
        self._ledger: Ledger | None = None
        self._retry_errors = False

    def run(self, *, retry_errors: bool) -> None:
        """Run to the end, or to the error that ends the process. `retry_errors`: retry after an error."""
        self._retry_errors = retry_errors
        with suppress(ForecastdError):
            self._ledger = self._open_ledger()
            self._write_epochs(self._ledger)
        if self._ledger is not None:
            with suppress(Exception):  # a process that dies does not close it either
                self._ledger.close()
        self.disk.unregister()

    def find_losses(self) -> list[str]:
        """What is wrong with the surviving file. If the fault was not a power cut, the power is cut now."""
        survived = self._directory / "survived"
        survived.mkdir()
        self.disk.write_surviving_files(survived)
        for extra in self._directory.glob("ledger.sqlite.high-water"):
            shutil.copy(extra, survived)
        try:
            ledger = Ledger(survived / "ledger.sqlite", timeout_seconds=0.0)
        except ForecastdError as error:
            return [f"does not open again: {error}"]
        try:
            losses = [f"was set aside: {path.name}" for path in survived.glob("*damaged*")]
            losses += [*ledger.find_problems(), *self._lost_signatures(ledger), *self._lost_changes(ledger)]
        finally:
            ledger.close()
            shutil.rmtree(self._directory)
        return losses

    def _open_ledger(self) -> Ledger:
        for _ in range(MAX_ATTEMPTS if self._retry_errors else 1):
            with suppress(RetryLater):
                return Ledger(self._path, timeout_seconds=0.0, connect=self.disk.connect)
        raise RetryLater

    def _write_epochs(self, ledger: Ledger) -> None:
        """The entries of some epochs: served at once, served with the second signature, missed."""
        self._attempt(lambda: ledger.set_known_from(CHAIN, WALLET, 0))
        self._attempt(lambda: ledger.record_sequence_use(CHAIN, WALLET, 0, "0" * 64, "register"))
        sequence = 1
        for epoch in range(EPOCHS):
            key: EpochKey = (CHAIN, 67, 1 + 720 * epoch, WALLET)
            if epoch % 3 == 2:
                self._apply_change(
                    key,
                    (SubmissionState.MISSED, 0),
                    lambda key=key: ledger.record_unsigned(key, SubmissionState.MISSED, 0.0, reason="x"),  # type: ignore[misc]
                )
                continue
            attempts = 1 + epoch % 2
            for attempt in range(1, attempts + 1):
                self._sign(ledger, key, sequence, attempt)
                sequence += 1
                if attempt < attempts:
                    self._record_state(ledger, key, SubmissionState.ABANDONED)
            self._record_state(ledger, key, SubmissionState.INCLUDED)
            self._record_state(ledger, key, SubmissionState.ADMITTED)

    def _sign(self, ledger: Ledger, key: EpochKey, sequence: int, attempt: int) -> None:
        raw = random.Random(sequence).randbytes(900)
        name = hashlib.sha256(raw).hexdigest().upper()
        submission = Submission(*key, "0.01", sequence, raw, name, key[2] + 719, 200_000, 10)

        def commit() -> None:
            entry = ledger.find(key)
            if entry is None or entry.row.attempts < attempt:  # a worker that continues sends the bytes that are there
                ledger.commit(submission, 1.0)

        self._apply_change(key, (SubmissionState.SIGNED, attempt), commit)
        self._reported.sent_submissions.append(submission)

    def _record_state(self, ledger: Ledger, key: EpochKey, state: SubmissionState) -> None:
        attempts = self._reported.completed_changes[key][1]

        def record() -> None:
            entry = ledger.find(key)
            assert entry is not None
            row: LedgerRow = replace(entry.row, state=state, height=key[2] + 3)
            ledger.record(key, row, 2.0)

        self._apply_change(key, (state, attempts), record)

    def _apply_change(self, key: EpochKey, new_state: tuple[SubmissionState, int], work: Callable[[], object]) -> None:
        self._reported.started_changes.setdefault(key, set()).add(new_state)
        self._attempt(work)
        self._reported.completed_changes[key] = new_state
        self._reported.started_changes.pop(key)

    def _attempt(self, work: Callable[[], object]) -> None:
        """Call `work` once, or as often as a worker that retries would."""
        for _ in range(MAX_ATTEMPTS - 1 if self._retry_errors else 0):
            try:
                work()
            except RetryLater:
                continue
            return
        work()

    def _lost_signatures(self, ledger: Ledger) -> Iterator[str]:
        for submission in self._reported.sent_submissions:
            if submission not in ledger.attempts(submission.key):
                yield f"sequence {submission.sequence} of nonce {submission.nonce} was sent and is not on disk"

    def _lost_changes(self, ledger: Ledger) -> Iterator[str]:
        for key in {**self._reported.started_changes, **self._reported.completed_changes}:
            entry = ledger.find(key)
            stored_state = None if entry is None else (entry.row.state, entry.row.attempts)
            allowed_states = {self._reported.completed_changes.get(key), *self._reported.started_changes.get(key, ())}
            if stored_state not in allowed_states:
                yield f"nonce {key[2]}: {stored_state} is on disk, {self._reported.completed_changes.get(key)} was reported"
