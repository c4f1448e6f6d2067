"""The children of one pool: starts them, reads their messages, detects failures and replaces them.

Invariant: only the pool's thread calls this, and nothing here waits for a child. The job of a failed child is handed to a
standby before that child is stopped.
"""

from __future__ import annotations

import logging
import selectors
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from forecastd.runtime.jobs import ChildFailed, InvalidResult, ModelFailed
from forecastd.supervise import detector
from forecastd.supervise.detector import Phase
from forecastd.supervise.events import EventDispatcher, EventKind, ProcessEvent, SupervisionCounts
from forecastd.supervise.jobs import ChildSetup
from forecastd.supervise.policy import SlotBackoff, SupervisionPolicy
from forecastd.supervise.process import ChildProcess, StopMode, output_lines
from forecastd.supervise.protocol import ChildMessage, InvalidMessage, printable
from forecastd.supervise.queue import JobQueue, WorkItem

log = logging.getLogger(__name__)

MAX_POLL_SECONDS = 1.0  # the longest time between two checks of children that work
MAX_IDLE_SECONDS = 60.0  # the same while every child is idle: only its heartbeat matters, and its exit wakes the pool
# An exiting process closes its channel a moment before it ends; one that lives on without a channel is useless.
_CLOSED_CHANNEL_GRACE_SECONDS = 1.0


@dataclass(eq=False)
class WorkerSlot:
    """A place for one child in a pool. It outlives its children and remembers how often they failed.

    `failed_starts`: how many children in a row did not reach the loading phase.
    """

    child: ChildProcess | None = None
    failed_starts: int = 0
    backoff: SlotBackoff = field(default_factory=SlotBackoff)


class ChildManager:
    """The slots, children and selector of one pool. `stopping`: children that have left their slots but not yet exited."""

    def __init__(
        self,
        setup: ChildSetup,
        policy: SupervisionPolicy,
        size: int,
        *,
        queue: JobQueue,
        counts: SupervisionCounts,
        dispatcher: EventDispatcher,
    ) -> None:
        self.slots = [WorkerSlot() for _ in range(size + policy.standbys)]
        self.stopping: list[ChildProcess] = []
        self.selector = selectors.DefaultSelector()
        self._setup, self._policy, self._size = setup, policy, size
        self._queue, self._counts, self._dispatcher = queue, counts, dispatcher

    @property
    def children(self) -> list[tuple[WorkerSlot, ChildProcess]]:
        """The children in their slots. Any thread may read it."""
        return [(slot, child) for slot in list(self.slots) if (child := slot.child) is not None]

    def fill_slots(self, now: float) -> None:
        """Start missing children and dispatch waiting jobs."""
        target = self._size + self._policy.standbys
        if self._policy.standbys == 0 and any(child.last_warning and child.item for _, child in self.children):
            target += 1  # a slow child may turn out hung: start its replacement now
        self.slots += [WorkerSlot() for _ in range(target - len(self.slots))]
        jobless = [slot for slot in self.slots if slot.child is None or slot.child.item is None]
        jobless.sort(
            key=lambda slot: slot.child is not None and slot.child.is_idle
        )  # the ones that are not ready first
        for slot in jobless[: max(0, len(self.slots) - target)]:
            self._stop_child(slot, now)
            self.slots.remove(slot)
        for slot in self.slots:
            if slot.child is None and now >= slot.backoff.not_before and self._queue.can_start:
                self._launch(slot, now)
        self._dispatch_jobs(now)

    def _launch(self, slot: WorkerSlot, now: float) -> None:
        try:
            child = ChildProcess(now, self._setup, self._policy.memory)
        except OSError as error:
            message = f"Cannot start a model process: {error.strerror}."
            log.warning("%s", message)
            slot.backoff.not_before = now + MAX_POLL_SECONDS
            self._record_failed_start(slot, message)
            return
        self._counts.launches += 1
        slot.child, child.launch_number = child, self._counts.launches
        for source in child.sources:
            self.selector.register(source, selectors.EVENT_READ)
        idle_heartbeat = self._policy.limits.idle_heartbeat
        child.send("load", {**self._setup.load_fields(child.launch_number), "idle_heartbeat": idle_heartbeat})
        self._publish("launched", child)

    def _dispatch_jobs(self, now: float) -> None:
        children = [child for _, child in self.children]
        free = self._size - sum(child.item is not None for child in children)
        for child in [child for child in children if child.is_idle][: max(0, free)]:
            if (item := self._queue.take()) is None:
                return
            child.item, child.last_warning = item, None
            child.state = detector.assign_job(child.state, now, item.name, item.job.phase)
            child.send(item.job.kind, {"job": item.name, **item.job.fields}, item.job.arrays)
            self._update_write_interest(child)
            self._publish("dispatched", child)

    def _stop_child(self, slot: WorkerSlot, now: float, mode: StopMode = "graceful") -> None:
        """Remove the child from its slot and begin to stop it."""
        child, slot.child = slot.child, None
        if child is not None:
            child.item = None
            child.stop(now, self._policy.limits.stopping, mode)
            self._unregister(child.channel)
            self.stopping.append(child)

    def read_children(self, now: float) -> None:
        """Read the children's messages and output; send what waits for them."""
        for slot, child in self.children:
            self._read_child(slot, child, now)
        for child in self.stopping:
            self._read_output(child)

    def _read_output(self, child: ChildProcess) -> None:
        for line in output_lines(child.read_output()):
            log.debug("output of model process %d: %s", child.pid, line)
        if child.output_closed:
            self._unregister(child.output_fd)

    def _update_write_interest(self, child: ChildProcess) -> None:
        """Watch the channel for writing while bytes wait to be sent."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.has_unsent else 0)
        if self.selector.get_key(child.channel).events != events:
            self.selector.modify(child.channel, events)

    def _read_child(self, slot: WorkerSlot, child: ChildProcess, now: float) -> None:
        child.flush()
        self._read_output(child)
        for message in child.read_messages(now):
            if slot.child is not child:
                return  # an earlier message made the manager replace it
            if message.launch_id != child.launch_id:
                self._counts.stale_messages += 1
                continue
            try:
                self._handle_message(slot, child, message, now)
            except InvalidMessage as error:
                self._replace_child(slot, child, now, "died", f"sent an invalid message ({error})")
        if slot.child is not child:
            return
        if child.protocol_error:
            self._replace_child(slot, child, now, "died", f"sent an invalid message ({child.protocol_error})")
        elif child.channel_closed_at is not None:
            self._unregister(child.channel)
        else:
            self._update_write_interest(child)

    def _handle_message(self, slot: WorkerSlot, child: ChildProcess, message: ChildMessage, now: float) -> None:
        child.state = detector.record_heartbeat(child.state, now, message.launch_id)
        item = child.item if child.item is not None and message.fields.get("job") == child.item.name else None
        if message.kind == "progress":
            self._handle_progress(child, message, now)
        elif message.kind == "ready" and child.is_starting:
            child.bundle_sha256, slot.failed_starts = printable(message.text("bundle_sha256")), 0
            self._publish("ready", child)
            self._make_idle(child, now)
            self._queue.notify_ready(child.bundle_sha256)
        elif message.kind == "result" and item is not None:
            self._handle_result(slot, child, item, message, now)
        elif message.kind == "error" and (item is not None or child.is_starting):
            self._handle_error(slot, child, item, message, now)

    def _handle_progress(self, child: ChildProcess, message: ChildMessage, now: float) -> None:
        try:
            phase = Phase(message.text("phase"))
        except ValueError as error:
            raise InvalidMessage(str(error)) from error
        job, detail = message.fields.get("job"), message.fields.get("detail")
        child.state = detector.record_progress(
            child.state,
            now,
            launch_id=message.launch_id,
            job=job if isinstance(job, str) else None,
            phase=phase,
            done=message.number("done"),
            total=message.number("total"),
        )
        self._publish("progress", child, detail=detail if isinstance(detail, dict) else {})

    def _handle_result(
        self, slot: WorkerSlot, child: ChildProcess, item: WorkItem, message: ChildMessage, now: float
    ) -> None:
        try:
            value = item.job.read(message)
        except InvalidResult as error:
            self._counts.invalid_results += 1
            self._replace_child(slot, child, now, "invalid_result", f"returned an invalid result: {error}")
            return
        self._counts.recovered_stalls += child.last_warning is not None
        self._publish("finished", child)
        self._make_idle(child, now)
        self._queue.complete(item, value)

    def _handle_error(
        self, slot: WorkerSlot, child: ChildProcess, item: WorkItem | None, message: ChildMessage, now: float
    ) -> None:
        """The child reported that it cannot do its job, or without a job that it cannot load its bundle."""
        kind, text = message.text("error"), printable(message.text("message"))
        if kind == "memory" or (kind == "bundle" and item is not None):
            self._counts.invalid_results += item is not None
            self._replace_child(slot, child, now, "invalid_result", f"reported: {text}")
            return
        refusal = ModelFailed(text, kind, message.text("check"))
        self._publish("refused", child, text)
        if item is not None:  # because of the job itself
            self._make_idle(child, now)
            self._queue.reject(item, refusal)
            return
        # Every other child would report the same. The next request tries the bundle again.
        self._queue.bundle_error = refusal
        if not any(other.is_ready for _, other in self.children):  # one that loaded it earlier may still serve the jobs
            self._queue.fail_all(refusal)
        for other_slot, other in self.children:
            if other.is_starting:
                self._stop_child(other_slot, now)

    @staticmethod
    def _make_idle(child: ChildProcess, now: float) -> None:
        child.item, child.last_warning = None, None
        child.state = detector.finish_job(child.state, now)

    def handle_due_events(self, now: float) -> None:
        """Check every child and do what is due: replace, expire, shut down."""
        for slot, child in self.children:
            self._check_child(slot, child, now)
        self._queue.expire(now)
        for child in list(self.stopping):
            if stacks := child.advance_shutdown(now):
                log.warning("Stacks of model process %d:\n%s", child.pid, stacks)
                self._publish("stacks", child, stacks)
            if child.has_exited():
                self.stopping.remove(child)
                self._publish("exited", child, child.exit_description())
                self._release(child)

    def _check_child(self, slot: WorkerSlot, child: ChildProcess, now: float) -> None:
        state, verdict = child.state, detector.assess(now, child.state, self._policy.limits)
        closed_at = child.channel_closed_at
        if child.has_exited():
            self._handle_exit(slot, child, now)
        elif closed_at is not None and now - closed_at > _CLOSED_CHANNEL_GRACE_SECONDS:
            self._replace_child(slot, child, now, "died", "closed its channel")
        elif child.item is not None and now >= child.item.deadline:
            self._handle_deadline(slot, child, child.item, now)
        elif verdict.state == "hung":
            self._handle_hang(slot, child, now, verdict.reason)
        elif verdict.state == "slow" and child.last_warning != (state.phase, state.last_progress):
            child.last_warning = state.phase, state.last_progress
            self._publish("slow", child, verdict.reason)
            log.warning("Model process %d is slow: %s, at %.0f %%, job %s.", child.pid, verdict.reason,
                        state.percent, child.job_name or "none")  # fmt: skip

    def _handle_hang(self, slot: WorkerSlot, child: ChildProcess, now: float, reason: str) -> None:
        state, item, sha256 = child.state, child.item, child.bundle_sha256[:12]
        name = self._setup.name
        self._counts.hangs[str(state.phase), sha256 or name] += 1
        job = f"job {item.job.name}, attempt {item.attempt} of {item.job.attempts}" if item else "job none"
        description = (
            f"Model process {child.pid} hung: {reason}. Bundle {f'{name} ({sha256})' if sha256 else name or 'none'}, "
            f"launch {child.launch_number}, phase {state.phase}, {job}, at {state.percent:.0f} %, "
            f"last heartbeat {now - state.last_heartbeat:.1f} s ago, last progress {now - state.last_progress:.1f} s ago."
        )
        actions = self._replace_child(slot, child, now, "hung", f"hung ({reason})")
        log.error("%s %s", description, actions)  # one line with all that an operator needs

    def _handle_exit(self, slot: WorkerSlot, child: ChildProcess, now: float) -> None:
        self._read_child(slot, child, now)  # it may have sent its result before it died
        if slot.child is not child:
            return
        exit_description = child.exit_description()
        if "Fatal Python error" in child.output_tail:
            log.warning("Stacks of model process %d:\n%s", child.pid, child.output_tail)
        self._replace_child(slot, child, now, "died", f"died in phase {child.state.phase}, {exit_description}")

    def _handle_deadline(self, slot: WorkerSlot, child: ChildProcess, item: WorkItem, now: float) -> None:
        """The result is no longer needed. The child is replaced, because its work cannot be cancelled."""
        self._counts.deadlines_exceeded += 1
        self._publish("deadline_exceeded", child)
        where = f"at {child.state.percent:.0f} % of {child.state.phase}"
        log.warning("Deadline of %s passed: model process %d was %s. The job fails.", item.job.name, child.pid, where)
        self._queue.fail(item, f"its deadline has passed {where}")
        self._stop_child(slot, now, "kill")

    def _replace_child(self, slot: WorkerSlot, child: ChildProcess, now: float, kind: EventKind, reason: str) -> str:
        """Stop a failed child, hand its job over, and schedule a replacement. Return what was done, in words."""
        phase, item = child.state.phase, child.item
        description = f"Model process {child.pid} {reason}"
        self._publish(kind, child, reason)
        self._counts.crashes += kind == "died"
        self._stop_child(slot, now, "dump_stacks" if kind == "hung" else "kill")
        if phase is Phase.STARTING:
            self._record_failed_start(slot, f"{description}.")
        elif phase is not Phase.IDLE and self._queue.record_failure_and_quarantine(description):
            self._announce_quarantine(now)
        actions = f"{self._fail_over(item, description, now)} {self._schedule_replacement(slot, now)}"
        if kind != "hung":  # `_handle_hang` logs its own line
            log.error("%s; job %s. %s", description, item.job.name if item else "none", actions)
        return actions

    def _record_failed_start(self, slot: WorkerSlot, reason: str) -> None:
        """Count a child that did not reach the loading phase.

        All waiting jobs fail once every slot has used up its attempts.
        """
        slot.failed_starts += 1
        any_ready = any(child.is_ready for _, child in self.children)
        if not any_ready and all(other.failed_starts >= self._policy.attempts for other in self.slots):
            for other in self.slots:
                other.failed_starts = 0
            self._queue.fail_all(ChildFailed(reason))

    def _fail_over(self, item: WorkItem | None, reason: str, now: float) -> str:
        if item is None:
            return "It had no job."
        if not self._queue.requeue(item, reason, now):
            return "Its job failed: no attempts or no time left."
        self._dispatch_jobs(now)
        successor = next((child for _, child in self.children if child.item is item), None)
        if successor is None:
            return "Its job waits for the next process."
        self._counts.failovers += 1
        self._publish("failed_over", successor, reason)
        return f"Its job was handed over to standby process {successor.pid}."

    def _schedule_replacement(self, slot: WorkerSlot, now: float) -> str:
        if not self._queue.can_start:
            return "It is not replaced."
        self._counts.replacements += 1
        wait = slot.backoff.record_replacement(now)
        if not wait:
            return "A replacement is starting."
        self._dispatcher.publish(ProcessEvent.without_child("backing_off", now, f"{wait:g} s"))
        return f"Replaced too often recently: the next replacement starts in {wait:g} s."

    def _announce_quarantine(self, now: float) -> None:
        log.error("%s", self._queue.quarantine_error)
        self._dispatcher.publish(ProcessEvent.without_child("quarantined", now, str(self._queue.quarantine_error)))
        for slot, child in self.children:
            if child.item is None:
                self._stop_child(slot, now)

    def next_check(self, now: float) -> float:
        """The monotonic time at which the next check is due."""
        children = [child for _, child in self.children]
        can_wait = not self.stopping and all(child.is_idle and child.exit_fd is not None for child in children)
        times = [now + (MAX_IDLE_SECONDS if can_wait else MAX_POLL_SECONDS)]
        times += [item.deadline for item in self._queue.pending]
        times += [child.next_shutdown_time() for child in self.stopping]
        times += [slot.backoff.not_before for slot in self.slots]
        times += [detector.next_change(now, child.state, self._policy.limits) for child in children]
        times += [child.item.deadline for child in children if child.item is not None]
        return min(time for time in times if time > now) + 0.001

    def reset_timers(self, now: float) -> None:
        """Restart the timers of all children after the supervisor did not run for a while."""
        for _, child in self.children:
            child.state = detector.reset_timers(child.state, now)

    def stop_all(self, now: float) -> None:
        """Begin to stop every child; running jobs fail."""
        for slot, child in self.children:
            mode: StopMode = "graceful" if child.item is None else "kill"
            if child.item is not None:
                self._queue.fail(child.item, "the model processes are shutting down")
            self._stop_child(slot, now, mode)

    def kill_all(self) -> None:
        """Kill every child and release its descriptors, whatever state it is in."""
        for slot, child in self.children:
            if child.item is not None:
                self._queue.fail(child.item, "the model processes were stopped")
            slot.child, child.item = None, None
            self.stopping.append(child)
        for child in self.stopping:
            child.kill()
            self._release(child)
        self.stopping.clear()
        self.selector.close()

    def _unregister(self, source: Any) -> None:
        with suppress(KeyError):  # it may have been closed before
            self.selector.unregister(source)

    def _release(self, child: ChildProcess) -> None:
        for source in child.sources:
            self._unregister(source)
        child.close()

    def _publish(
        self, kind: EventKind, child: ChildProcess, text: str = "", detail: Mapping[str, Any] | None = None
    ) -> None:
        self._dispatcher.publish(ProcessEvent(kind, child.pid, child.state, child.job_name, text, detail or {}))
