"""Keeps the children of one pool: starts them, hears them, judges them, and acts on it. For the pool's thread only.

A child that hangs is judged first, its job is given to one that stands by, and only then is it ended. Nothing here waits
for a child.
"""

from __future__ import annotations

import logging
import selectors

from forecastd.supervise import detector
from forecastd.supervise.audience import Audience
from forecastd.supervise.board import Board, Task
from forecastd.supervise.detector import Phase
from forecastd.supervise.jobs import BadAnswer
from forecastd.supervise.messages import GarbledMessage, Message, printable
from forecastd.supervise.policy import Policy, Setup
from forecastd.supervise.process import ChildFailed, ChildProcess, How, ModelFailed, lines
from forecastd.supervise.report import Counts, Event, Kind, hang_line
from forecastd.supervise.slot import BEFORE_READY, Slot

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # the longest that nobody looks at the children
_HUNG_UP_SECONDS = 1.0  # a process that ends closes its channel a moment earlier; one that lives on is of no use


class Keeper:
    """The children of one setup."""

    def __init__(
        self,
        setup: Setup,
        policy: Policy,
        size: int,
        *,
        board: Board,
        counts: Counts,
        audience: Audience,
    ) -> None:
        self.slots = [Slot() for _ in range(size + policy.standbys)]
        self.leaving: list[ChildProcess] = []
        self.selector = selectors.DefaultSelector()
        self._setup, self._policy, self._size = setup, policy, size
        self._board, self._counts, self._audience = board, counts, audience

    # ---- children and jobs --------------------------------------------------------------------------------------------

    def fill(self, now: float) -> None:
        """Start children where they are missing, and give out jobs."""
        wanted = self._size + self._policy.standbys
        if self._policy.standbys == 0 and any(slot.warned and slot.task for slot in self.slots):
            wanted += 1  # one is slow and may turn out hung: one that stands by by then costs nothing if it does not
        while len(self.slots) < wanted:
            self.slots.append(Slot())
        spare = sorted((slot for slot in self.slots if slot.task is None), key=lambda slot: slot.idle)
        for slot in spare[: max(0, len(self.slots) - wanted)]:  # those that are ready last
            self._leave(slot, now)
            self.slots.remove(slot)
        for slot in self.slots:
            if slot.child is None and now >= slot.back_off.not_before and self._board.may_start:
                self._launch(slot, now)
        self._dispatch(now)

    def _launch(self, slot: Slot, now: float) -> None:
        try:
            setup = self._setup
            child = ChildProcess(now, memory=self._policy.memory, threads=setup.threads, more=setup.environment)
        except OSError as error:
            told = f"The model's process could not be started: {error.strerror}."
            log.warning("%s", told)
            slot.back_off.not_before = now + LOOK_SECONDS
            self._false_start(slot, told)
            return
        slot.child, slot.hung_up = child, None
        self._counts.launches += 1
        for part in child.sources:
            self.selector.register(part, selectors.EVENT_READ)
        child.tell("load", setup.told(self._counts.launches))
        self._tell("launched", slot)

    def _dispatch(self, now: float) -> None:
        busy = sum(slot.task is not None for slot in self.slots)
        for slot in self.slots:
            if busy >= self._size:
                return
            if slot.idle and slot.child is not None and (task := self._board.take()) is not None:
                phase = Phase.TRAINING if task.job.kind == "train" else Phase.PREDICTING
                slot.task, slot.warned = task, None
                slot.child.watched = detector.dispatched(slot.child.watched, now, task.name, phase)
                slot.child.tell(task.job.kind, {"job": task.name, **task.job.fields}, task.job.arrays)
                self._mind(slot.child)
                self._tell("dispatched", slot)
                busy += 1

    def _leave(self, slot: Slot, now: float, how: How = "ask") -> None:
        """Take the child out of its slot and begin to end it."""
        child = slot.child
        if child is not None:
            slot.child, slot.task, slot.bundle, slot.warned = None, None, "", None
            child.stop(now, self._policy.limits.stopping, how)
            self._deaf_to(child.channel)
            self.leaving.append(child)

    # ---- hearing ------------------------------------------------------------------------------------------------------

    def hear(self, now: float) -> None:
        """Read what the children sent and wrote; write what they have not taken yet."""
        for slot in self.slots:
            if slot.child is not None:
                self._hear(slot, slot.child, now)
        for leaver in self.leaving:
            self._read_output(leaver)

    def _read_output(self, child: ChildProcess) -> None:
        for line in lines(child.read_errors()):
            log.debug("model process %d wrote: %s", child.pid, line)
        if child.mute:
            self._deaf_to(child.errors)

    def _mind(self, child: ChildProcess) -> None:
        """Wake up when the channel takes more, as long as there is something left to send."""
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.wants_to_write else 0)
        if self.selector.get_key(child.channel).events != wanted:
            self.selector.modify(child.channel, wanted)

    def _hear(self, slot: Slot, child: ChildProcess, now: float) -> None:
        child.write()
        self._read_output(child)
        for message in child.read():
            if slot.child is not child:
                return  # what it said before made an end of it
            if message.launch != child.launch:
                self._counts.stale_messages += 1
                continue
            try:
                self._take(slot, child, message, now)
            except GarbledMessage as error:
                self._lost(slot, now, "died", f"sent what is no message ({error})")
        if slot.child is not child:
            return
        if child.garbled:
            self._lost(slot, now, "died", f"sent what is no message ({child.garbled})")
        elif child.hung_up:
            slot.hung_up = slot.hung_up or now
            self._deaf_to(child.channel)
        else:
            self._mind(child)

    def _take(self, slot: Slot, child: ChildProcess, message: Message, now: float) -> None:
        child.watched = detector.alive(child.watched, now, message.launch)
        task = slot.task if slot.task is not None and message.fields.get("job") == slot.task.name else None
        if message.kind == "progress":
            self._progress(slot, child, message, now)
        elif message.kind == "ready" and child.watched.phase in BEFORE_READY:
            slot.bundle, slot.false_starts = printable(message.text("bundle_sha256")), 0
            self._tell("ready", slot)
            self._finish(slot, child, now)
            self._board.ready(slot.bundle)
        elif message.kind == "result" and task is not None:
            self._answered(slot, child, task, message, now)
        elif message.kind == "error" and task is not None:
            self._refused(slot, child, task, message, now)
        elif message.kind == "error" and child.watched.phase in BEFORE_READY:
            self._no_good(slot, message, now)

    def _progress(self, slot: Slot, child: ChildProcess, message: Message, now: float) -> None:
        try:
            phase = Phase(message.text("phase"))
        except ValueError as error:
            raise GarbledMessage(str(error)) from error
        job, detail = message.fields.get("job"), message.fields.get("detail")
        child.watched = detector.progressed(
            child.watched,
            now,
            launch=message.launch,
            job=job if isinstance(job, str) else None,
            phase=phase,
            done=message.number("done"),
            total=message.number("total"),
        )
        told = Event("progress", child.pid, child.watched, slot.job, detail=detail if isinstance(detail, dict) else {})
        self._audience.tell(told)

    def _answered(self, slot: Slot, child: ChildProcess, task: Task, message: Message, now: float) -> None:
        try:
            value = task.job.read(message)
        except BadAnswer as error:
            self._counts.bad_answers += 1
            self._lost(slot, now, "bad", f"gave a bad answer: {error}")
            return
        self._counts.slow_but_fine += slot.warned is not None
        self._tell("finished", slot)
        self._finish(slot, child, now)
        self._board.answer(task, value)

    def _refused(self, slot: Slot, child: ChildProcess, task: Task, message: Message, now: float) -> None:
        """The child says that the job cannot be done: for its memory, its model, or the job itself."""
        kind, text = message.text("error"), printable(message.text("message"))
        if kind in {"memory", "bundle"}:
            self._counts.bad_answers += 1
            self._lost(slot, now, "bad", f"says: {text}")
            return
        self._tell("refused", slot, text)
        self._finish(slot, child, now)
        self._board.refuse(task, ModelFailed(text, kind, message.text("check")))

    def _no_good(self, slot: Slot, message: Message, now: float) -> None:
        """The child says that its bundle is no good, and every child would. None is started until somebody asks again."""
        text = printable(message.text("message"))
        if message.text("error") == "memory":
            self._lost(slot, now, "bad", f"says: {text}")
            return
        refusal = ModelFailed(text, message.text("error"), message.text("check"))
        self._tell("refused", slot, text)
        self._board.refusal = refusal
        if not any(place.proven for place in self.slots):  # one that was made ready before may still serve them
            self._board.release(refusal)
        for place in self.slots:
            if place.child is not None and place.child.watched.phase in BEFORE_READY:
                self._leave(place, now)

    @staticmethod
    def _finish(slot: Slot, child: ChildProcess, now: float) -> None:
        slot.task, slot.warned = None, None
        child.watched = detector.finished(child.watched, now)

    # ---- judging ------------------------------------------------------------------------------------------------------

    def judge(self, now: float) -> None:
        """Look at every child, and do what is due."""
        for slot in self.slots:
            if slot.child is not None:
                self._judge(slot, slot.child, now)
        self._board.expire(now)
        for leaver in list(self.leaving):
            if stacks := leaver.go_on(now):
                log.warning("Stacks of model process %d:\n%s", leaver.pid, stacks)
                self._audience.tell(Event("stacks", leaver.pid, leaver.watched, text=stacks))
            if leaver.ended():
                self.leaving.remove(leaver)
                self._audience.tell(Event("gone", leaver.pid, leaver.watched, text=leaver.fate()))
                self._forget(leaver)

    def _judge(self, slot: Slot, child: ChildProcess, now: float) -> None:
        found = detector.verdict(now, child.watched, self._policy.limits)
        if child.ended():
            self._died(slot, child, now)
        elif slot.hung_up is not None and now - slot.hung_up > _HUNG_UP_SECONDS:
            self._lost(slot, now, "died", "closed its channel")
        elif slot.task is not None and now >= slot.task.deadline:
            self._late(slot, child, slot.task, now)
        elif found.state == "hung":
            self._hung(slot, child, now, found.reason)
        elif found.state == "slow" and slot.warned != (child.watched.phase, child.watched.progressed):
            slot.warned = child.watched.phase, child.watched.progressed
            self._tell("slow", slot, found.reason)
            log.warning("Model process %d is slow: %s, at %.0f %%, job %s.", child.pid, found.reason,
                        child.watched.percent, slot.job or "none")  # fmt: skip

    def _hung(self, slot: Slot, child: ChildProcess, now: float, reason: str) -> None:
        watched, job = child.watched, slot.job
        self._counts.hangs[str(watched.phase), slot.bundle[:12] or self._setup.name] += 1
        done = self._lost(slot, now, "hung", f"hung ({reason})", "dump")
        log.error("%s", hang_line(now, child.pid, watched, job=job, reason=reason, done=done))

    def _died(self, slot: Slot, child: ChildProcess, now: float) -> None:
        self._hear(slot, child, now)  # an answer may lie there that it gave before it died
        if slot.child is not child:
            return
        fate = child.fate()
        if "Fatal Python error" in child.tail:
            log.warning("Stacks of model process %d:\n%s", child.pid, child.tail)
        self._lost(slot, now, "died", f"died in phase {child.watched.phase}, {fate}")

    def _late(self, slot: Slot, child: ChildProcess, task: Task, now: float) -> None:
        """Nobody wants the answer any more; the child is replaced, for its work cannot be called off."""
        self._counts.late += 1
        self._tell("late", slot)
        where = f"at {child.watched.percent:.0f} % of {child.watched.phase}"
        log.warning("Model process %d is %s at the deadline of %s, which is given up.", child.pid, where, task.job.name)
        self._board.fail(task, f"its deadline has passed {where}")
        self._leave(slot, now, "now")

    def _lost(self, slot: Slot, now: float, kind: Kind, why: str, how: How = "now") -> str:
        """A child is of no use any more: its job goes to another, itself it is ended. Tells what was done, in words."""
        child, task = slot.child, slot.task
        if child is None:
            return ""
        told = f"Model process {child.pid} {why}"
        self._tell(kind, slot, why)
        self._counts.crashes += kind == "died"
        phase = child.watched.phase
        self._leave(slot, now, how)
        if phase is Phase.STARTING:
            self._false_start(slot, f"{told}.")
        elif phase is not Phase.IDLE and self._board.strike(told):
            self._give_up(now)
        done = f"{self._moved(task, told, now)} {self._replaced(slot, now)}"
        if kind != "hung":  # a hang has a line of its own
            log.error("%s; job %s. %s", told, task.job.name if task else "none", done)
        return done

    def _false_start(self, slot: Slot, told: str) -> None:
        """A child did not come as far as its model. Nobody is left to wait for ever, nor given up while another may."""
        slot.false_starts += 1
        if all(place.false_starts >= self._policy.attempts and not place.proven for place in self.slots):
            for place in self.slots:
                place.false_starts = 0
            self._board.release(ChildFailed(told))

    def _moved(self, task: Task | None, told: str, now: float) -> str:
        if task is None:
            return "It had no job."
        if not self._board.back(task, told, now):
            return "Its job is given up: no attempt or no time is left."
        self._dispatch(now)
        taker = next((slot.child for slot in self.slots if slot.task is task), None)
        if taker is None:
            return "Its job waits for the next process."
        self._counts.hand_overs += 1
        self._audience.tell(Event("handed_over", taker.pid, taker.watched, task.job.name, told))
        return f"Its job was handed to process {taker.pid}, which stood by."

    def _replaced(self, slot: Slot, now: float) -> str:
        if not self._board.may_start:
            return "It is not replaced."
        self._counts.replacements += 1
        wait = slot.back_off.replaced(now)
        if not wait:
            return "Another one is started."
        self._audience.tell(Event("backing_off", 0, detector.launched(now, ""), text=f"{wait:g} s"))
        return f"Replaced too often lately: the next one starts in {wait:g} s."

    def _give_up(self, now: float) -> None:
        log.error("%s", self._board.given_up)
        self._audience.tell(Event("quarantined", 0, detector.launched(now, ""), text=str(self._board.given_up)))
        for slot in self.slots:
            if slot.task is None:
                self._leave(slot, now)

    # ---- time and the end ---------------------------------------------------------------------------------------------

    def until_next(self, now: float) -> float:
        """Seconds until there is something to do."""
        limits = self._policy.limits
        times = [now + LOOK_SECONDS, *(task.deadline for task in self._board.queue)]
        times += [child.next_deed() for child in self.leaving]
        for slot in self.slots:
            times.append(slot.back_off.not_before)
            if slot.child is not None:
                times.append(detector.due(now, slot.child.watched, limits))
            if slot.task is not None:
                times.append(slot.task.deadline)
        return min(at for at in times if at > now) - now + 0.001

    def woken(self, now: float) -> None:
        """Nobody looked for a while: what was missed meanwhile is not the children's fault."""
        for slot in self.slots:
            if slot.child is not None:
                slot.child.watched = detector.woken(slot.child.watched, now)

    def dismiss(self, now: float) -> None:
        """Begin to end every child."""
        for slot in self.slots:
            how: How = "now" if slot.task is not None else "ask"
            if slot.task is not None:
                self._board.fail(slot.task, "the model's processes are being ended")
            self._leave(slot, now, how)

    def end(self) -> None:
        """Leave nothing behind, whatever state things are in."""
        for slot in self.slots:
            if slot.task is not None:
                self._board.fail(slot.task, "the model's processes are gone")
            if slot.child is not None:
                self.leaving.append(slot.child)
            slot.child = slot.task = None
        for child in self.leaving:
            child.kill()
            self._forget(child)
        self.leaving.clear()
        self.selector.close()

    def _deaf_to(self, part: object) -> None:
        if part in {key.fileobj for key in self.selector.get_map().values()}:
            self.selector.unregister(part)

    def _forget(self, child: ChildProcess) -> None:
        for part in child.sources:
            self._deaf_to(part)
        child.close()

    def _tell(self, kind: Kind, slot: Slot, text: str = "") -> None:
        if slot.child is not None:
            self._audience.tell(Event(kind, slot.child.pid, slot.child.watched, slot.job, text))
