"""The children of one pool: starts them, reads their messages, detects failures and replaces them.

Invariant: only the pool's thread calls this, and nothing here waits for a child. The job of a failed child is handed to a
standby before that child is stopped.
"""

from __future__ import annotations

import logging
import selectors
from dataclasses import dataclass, field

from forecastd.runtime.jobs import ChildFailed, InvalidResult, ModelFailed
from forecastd.supervise import detector
from forecastd.supervise.detector import Phase
from forecastd.supervise.events import EventDispatcher, EventKind, ProcessEvent, SupervisionCounts
from forecastd.supervise.policy import ChildSetup, SlotBackoff, SupervisionPolicy
from forecastd.supervise.process import ChildProcess, StopMode, output_lines
from forecastd.supervise.protocol import ChildMessage, InvalidMessage, printable
from forecastd.supervise.queue import JobQueue, WorkItem

log = logging.getLogger(__name__)

STARTUP_PHASES = {Phase.STARTING, Phase.LOADING, Phase.WARMING_UP}
MAX_POLL_SECONDS = 1.0  # the longest time between two checks of children that work
MAX_IDLE_SECONDS = 60.0  # the same while every child is idle: only its heartbeat matters, and its exit wakes the pool
# An exiting process closes its channel a moment before it ends; one that lives on without a channel is useless.
_CLOSED_CHANNEL_GRACE_SECONDS = 1.0


@dataclass(eq=False)
class WorkerSlot:
    """A place for one child in a pool. It outlives its children and remembers how often they failed.

    `launch_number`: the number of the child's launch in the pool, from 1. `bundle_sha256`: empty until the child is ready.
    `last_warning`: the phase and last progress that a slow child was warned for. `failed_starts`: how many children in a row
    did not reach the loading phase.
    """

    child: ChildProcess | None = None
    launch_number: int = 0
    item: WorkItem | None = None
    bundle_sha256: str = ""
    last_warning: tuple[Phase, float] | None = None
    channel_closed_at: float | None = None
    failed_starts: int = 0
    backoff: SlotBackoff = field(default_factory=SlotBackoff)

    @property
    def is_idle(self) -> bool:
        """Whether the child waits for a job and can receive one."""
        return self.child is not None and self.child.state.phase is Phase.IDLE and self.channel_closed_at is None

    @property
    def job_name(self) -> str:
        item = self.item  # one read: another thread may call this while the pool's thread takes the item away
        return item.job.name if item else ""

    @property
    def is_ready(self) -> bool:
        """Whether the child has loaded its model, and is idle or at work."""
        return self.child is not None and self.child.state.phase not in STARTUP_PHASES


class ChildManager:
    """The slots, children and selector of one pool."""

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

    def fill_slots(self, now: float) -> None:
        """Start missing children and dispatch waiting jobs."""
        target = self._size + self._policy.standbys
        if self._policy.standbys == 0 and any(slot.last_warning and slot.item for slot in self.slots):
            target += 1  # a slow child may turn out hung: start its replacement now
        while len(self.slots) < target:
            self.slots.append(WorkerSlot())
        jobless = sorted((slot for slot in self.slots if slot.item is None), key=lambda slot: slot.is_idle)
        for slot in jobless[: max(0, len(self.slots) - target)]:  # children that are not ready come first
            self._stop_child(slot, now)
            self.slots.remove(slot)
        for slot in self.slots:
            if slot.child is None and now >= slot.backoff.not_before and self._queue.can_start:
                self._launch(slot, now)
        self._dispatch_jobs(now)

    def _launch(self, slot: WorkerSlot, now: float) -> None:
        try:
            setup = self._setup
            child = ChildProcess(
                now,
                command=setup.command,
                memory=self._policy.memory,
                threads=setup.threads,
                extra_environment=setup.environment,
            )
        except OSError as error:
            message = f"Cannot start a model process: {error.strerror}."
            log.warning("%s", message)
            slot.backoff.not_before = now + MAX_POLL_SECONDS
            self._record_failed_start(slot, message)
            return
        slot.child, slot.channel_closed_at = child, None
        self._counts.launches += 1
        slot.launch_number = self._counts.launches
        for source in child.sources:
            self.selector.register(source, selectors.EVENT_READ)
        idle_heartbeat = self._policy.limits.idle_heartbeat
        child.send("load", {**setup.load_fields(self._counts.launches), "idle_heartbeat": idle_heartbeat})
        self._publish("launched", slot)

    def _dispatch_jobs(self, now: float) -> None:
        busy = sum(slot.item is not None for slot in self.slots)
        for slot in self.slots:
            if busy >= self._size:
                return
            if slot.is_idle and slot.child is not None and (item := self._queue.take()) is not None:
                slot.item, slot.last_warning = item, None
                slot.child.state = detector.assign_job(slot.child.state, now, item.name, item.job.phase)
                slot.child.send(item.job.kind, {"job": item.name, **item.job.fields}, item.job.arrays)
                self._update_write_interest(slot.child)
                self._publish("dispatched", slot)
                busy += 1

    def _stop_child(self, slot: WorkerSlot, now: float, mode: StopMode = "graceful") -> None:
        """Remove the child from its slot and begin to stop it."""
        child = slot.child
        if child is not None:
            slot.child, slot.item, slot.bundle_sha256, slot.last_warning = None, None, "", None
            child.stop(now, self._policy.limits.stopping, mode)
            self._unregister(child.channel)
            self.stopping.append(child)

    def read_children(self, now: float) -> None:
        """Read the children's messages and output; send what waits for them."""
        for slot in self.slots:
            if slot.child is not None:
                self._read_child(slot, slot.child, now)
        for stopping_child in self.stopping:
            self._read_output(stopping_child)

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
        for message in child.read_messages():
            if slot.child is not child:
                return  # an earlier message made the manager replace it
            if message.launch_id != child.launch_id:
                self._counts.stale_messages += 1
                continue
            try:
                self._handle_message(slot, child, message, now)
            except InvalidMessage as error:
                self._replace_child(slot, now, "died", f"sent an invalid message ({error})")
        if slot.child is not child:
            return
        if child.protocol_error:
            self._replace_child(slot, now, "died", f"sent an invalid message ({child.protocol_error})")
        elif child.channel_closed:
            slot.channel_closed_at = slot.channel_closed_at or now
            self._unregister(child.channel)
        else:
            self._update_write_interest(child)

    def _handle_message(self, slot: WorkerSlot, child: ChildProcess, message: ChildMessage, now: float) -> None:
        child.state = detector.record_heartbeat(child.state, now, message.launch_id)
        item = slot.item if slot.item is not None and message.fields.get("job") == slot.item.name else None
        if message.kind == "progress":
            self._handle_progress(slot, child, message, now)
        elif message.kind == "ready" and child.state.phase in STARTUP_PHASES:
            slot.bundle_sha256, slot.failed_starts = printable(message.text("bundle_sha256")), 0
            self._publish("ready", slot)
            self._make_idle(slot, child, now)
            self._queue.notify_ready(slot.bundle_sha256)
        elif message.kind == "result" and item is not None:
            self._handle_result(slot, child, item, message, now)
        elif message.kind == "error" and item is not None:
            self._handle_job_error(slot, child, item, message, now)
        elif message.kind == "error" and child.state.phase in STARTUP_PHASES:
            self._handle_bundle_error(slot, message, now)

    def _handle_progress(self, slot: WorkerSlot, child: ChildProcess, message: ChildMessage, now: float) -> None:
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
        event = ProcessEvent(
            "progress", child.pid, child.state, slot.job_name, detail=detail if isinstance(detail, dict) else {}
        )
        self._dispatcher.publish(event)

    def _handle_result(
        self, slot: WorkerSlot, child: ChildProcess, item: WorkItem, message: ChildMessage, now: float
    ) -> None:
        try:
            value = item.job.read(message)
        except InvalidResult as error:
            self._counts.invalid_results += 1
            self._replace_child(slot, now, "invalid_result", f"returned an invalid result: {error}")
            return
        self._counts.recovered_stalls += slot.last_warning is not None
        self._publish("finished", slot)
        self._make_idle(slot, child, now)
        self._queue.complete(item, value)

    def _handle_job_error(
        self, slot: WorkerSlot, child: ChildProcess, item: WorkItem, message: ChildMessage, now: float
    ) -> None:
        """The child reported that it cannot do the job: because of its memory, its bundle, or the job itself."""
        kind, text = message.text("error"), printable(message.text("message"))
        if kind in {"memory", "bundle"}:
            self._counts.invalid_results += 1
            self._replace_child(slot, now, "invalid_result", f"reported: {text}")
            return
        self._publish("refused", slot, text)
        self._make_idle(slot, child, now)
        self._queue.reject(item, ModelFailed(text, kind, message.text("check")))

    def _handle_bundle_error(self, slot: WorkerSlot, message: ChildMessage, now: float) -> None:
        """The child reported that its bundle is invalid; every other child would report the same.

        The next request tries the bundle again.
        """
        text = printable(message.text("message"))
        if message.text("error") == "memory":
            self._replace_child(slot, now, "invalid_result", f"reported: {text}")
            return
        refusal = ModelFailed(text, message.text("error"), message.text("check"))
        self._publish("refused", slot, text)
        self._queue.bundle_error = refusal
        if not any(other.is_ready for other in self.slots):  # a child that loaded it earlier may still serve the jobs
            self._queue.fail_all(refusal)
        for other in self.slots:
            if other.child is not None and other.child.state.phase in STARTUP_PHASES:
                self._stop_child(other, now)

    @staticmethod
    def _make_idle(slot: WorkerSlot, child: ChildProcess, now: float) -> None:
        slot.item, slot.last_warning = None, None
        child.state = detector.finish_job(child.state, now)

    def handle_due_events(self, now: float) -> None:
        """Check every child and do what is due: replace, expire, shut down."""
        for slot in self.slots:
            if slot.child is not None:
                self._check_child(slot, slot.child, now)
        self._queue.expire(now)
        for stopping_child in list(self.stopping):
            if stacks := stopping_child.advance_shutdown(now):
                log.warning("Stacks of model process %d:\n%s", stopping_child.pid, stacks)
                self._dispatcher.publish(ProcessEvent("stacks", stopping_child.pid, stopping_child.state, text=stacks))
            if stopping_child.has_exited():
                self.stopping.remove(stopping_child)
                self._dispatcher.publish(
                    ProcessEvent(
                        "exited", stopping_child.pid, stopping_child.state, text=stopping_child.exit_description()
                    )
                )
                self._release(stopping_child)

    def _check_child(self, slot: WorkerSlot, child: ChildProcess, now: float) -> None:
        verdict = detector.assess(now, child.state, self._policy.limits)
        if child.has_exited():
            self._handle_exit(slot, child, now)
        elif slot.channel_closed_at is not None and now - slot.channel_closed_at > _CLOSED_CHANNEL_GRACE_SECONDS:
            self._replace_child(slot, now, "died", "closed its channel")
        elif slot.item is not None and now >= slot.item.deadline:
            self._handle_deadline(slot, child, slot.item, now)
        elif verdict.state == "hung":
            self._handle_hang(slot, child, now, verdict.reason)
        elif verdict.state == "slow" and slot.last_warning != (child.state.phase, child.state.last_progress):
            slot.last_warning = child.state.phase, child.state.last_progress
            self._publish("slow", slot, verdict.reason)
            log.warning("Model process %d is slow: %s, at %.0f %%, job %s.", child.pid, verdict.reason,
                        child.state.percent, slot.job_name or "none")  # fmt: skip

    def _handle_hang(self, slot: WorkerSlot, child: ChildProcess, now: float, reason: str) -> None:
        state, item = child.state, slot.item
        self._counts.hangs[str(state.phase), slot.bundle_sha256[:12] or self._setup.name] += 1
        job = f"job {item.job.name}, attempt {item.attempt} of {item.job.attempts}" if item else "job none"
        description = (
            f"Model process {child.pid} hung: {reason}. Bundle {_bundle_name(self._setup.name, slot.bundle_sha256)}, "
            f"launch {slot.launch_number}, phase {state.phase}, {job}, at {state.percent:.0f} %, "
            f"last heartbeat {now - state.last_heartbeat:.1f} s ago, last progress {now - state.last_progress:.1f} s ago."
        )
        actions = self._replace_child(slot, now, "hung", f"hung ({reason})", "dump_stacks")
        log.error("%s %s", description, actions)  # one line with all that an operator needs

    def _handle_exit(self, slot: WorkerSlot, child: ChildProcess, now: float) -> None:
        self._read_child(slot, child, now)  # it may have sent its result before it died
        if slot.child is not child:
            return
        exit_description = child.exit_description()
        if "Fatal Python error" in child.output_tail:
            log.warning("Stacks of model process %d:\n%s", child.pid, child.output_tail)
        self._replace_child(slot, now, "died", f"died in phase {child.state.phase}, {exit_description}")

    def _handle_deadline(self, slot: WorkerSlot, child: ChildProcess, item: WorkItem, now: float) -> None:
        """The result is no longer needed. The child is replaced, because its work cannot be cancelled."""
        self._counts.deadlines_exceeded += 1
        self._publish("deadline_exceeded", slot)
        where = f"at {child.state.percent:.0f} % of {child.state.phase}"
        log.warning("Deadline of %s passed: model process %d was %s. The job fails.", item.job.name, child.pid, where)
        self._queue.fail(item, f"its deadline has passed {where}")
        self._stop_child(slot, now, "kill")

    def _replace_child(
        self, slot: WorkerSlot, now: float, kind: EventKind, reason: str, mode: StopMode = "kill"
    ) -> str:
        """Stop a failed child, hand its job over, and schedule a replacement. Return what was done, in words."""
        child, item = slot.child, slot.item
        if child is None:
            return ""
        description = f"Model process {child.pid} {reason}"
        self._publish(kind, slot, reason)
        self._counts.crashes += kind == "died"
        phase = child.state.phase
        self._stop_child(slot, now, mode)
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
        if all(other.failed_starts >= self._policy.attempts and not other.is_ready for other in self.slots):
            for other in self.slots:
                other.failed_starts = 0
            self._queue.fail_all(ChildFailed(reason))

    def _fail_over(self, item: WorkItem | None, reason: str, now: float) -> str:
        if item is None:
            return "It had no job."
        if not self._queue.requeue(item, reason, now):
            return "Its job failed: no attempts or no time left."
        self._dispatch_jobs(now)
        successor = next((slot.child for slot in self.slots if slot.item is item), None)
        if successor is None:
            return "Its job waits for the next process."
        self._counts.failovers += 1
        self._dispatcher.publish(ProcessEvent("failed_over", successor.pid, successor.state, item.job.name, reason))
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
        for slot in self.slots:
            if slot.item is None:
                self._stop_child(slot, now)

    def seconds_to_next_event(self, now: float) -> float:
        """Seconds until the next check is due."""
        limits = self._policy.limits
        children = [slot.child for slot in self.slots if slot.child is not None]
        all_idle = not self.stopping and all(slot.child is None or slot.is_idle for slot in self.slots)
        can_wait = all_idle and all(child.exit_fd is not None for child in children)
        times = [now + (MAX_IDLE_SECONDS if can_wait else MAX_POLL_SECONDS)]
        times += [item.deadline for item in self._queue.pending]
        times += [child.next_shutdown_time() for child in self.stopping]
        for slot in self.slots:
            times.append(slot.backoff.not_before)
            if slot.child is not None:
                times.append(detector.next_change(now, slot.child.state, limits))
            if slot.item is not None:
                times.append(slot.item.deadline)
        return min(time for time in times if time > now) - now + 0.001

    def reset_timers(self, now: float) -> None:
        """Restart the timers of all children after the supervisor did not run for a while."""
        for slot in self.slots:
            if slot.child is not None:
                slot.child.state = detector.reset_timers(slot.child.state, now)

    def stop_all(self, now: float) -> None:
        """Begin to stop every child; running jobs fail."""
        for slot in self.slots:
            mode: StopMode = "kill" if slot.item is not None else "graceful"
            if slot.item is not None:
                self._queue.fail(slot.item, "the model processes are shutting down")
            self._stop_child(slot, now, mode)

    def kill_all(self) -> None:
        """Kill every child and release its descriptors, whatever state it is in."""
        for slot in self.slots:
            if slot.item is not None:
                self._queue.fail(slot.item, "the model processes were stopped")
            if slot.child is not None:
                self.stopping.append(slot.child)
            slot.child = slot.item = None
        for child in self.stopping:
            child.kill()
            self._release(child)
        self.stopping.clear()
        self.selector.close()

    def _unregister(self, source: object) -> None:
        if source in {key.fileobj for key in self.selector.get_map().values()}:
            self.selector.unregister(source)

    def _release(self, child: ChildProcess) -> None:
        for source in child.sources:
            self._unregister(source)
        child.close()

    def _publish(self, kind: EventKind, slot: WorkerSlot, text: str = "") -> None:
        if slot.child is not None:
            self._dispatcher.publish(ProcessEvent(kind, slot.child.pid, slot.child.state, slot.job_name, text))


def _bundle_name(name: str, sha256: str) -> str:
    return f"{name} ({sha256[:12]})" if sha256 else name or "none"
