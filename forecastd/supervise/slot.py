"""A place for one child in a pool: it outlives the children that come and go in it, and remembers how often they did."""

from __future__ import annotations

from dataclasses import dataclass, field

from forecastd.supervise.detector import Phase
from forecastd.supervise.policy import SlotBackoff
from forecastd.supervise.process import ChildProcess
from forecastd.supervise.queue import WorkItem

STARTUP_PHASES = {Phase.STARTING, Phase.LOADING, Phase.WARMING_UP}


@dataclass(eq=False)
class WorkerSlot:
    """A place for one child, and what it is at. `bundle` is the child's, once it is ready; `false_starts`: how many in a
    row did not come as far as their model."""

    child: ChildProcess | None = None
    item: WorkItem | None = None
    bundle_sha256: str = ""
    last_warning: tuple[Phase, float] | None = None
    channel_closed_at: float | None = None
    failed_starts: int = 0
    backoff: SlotBackoff = field(default_factory=SlotBackoff)

    @property
    def is_idle(self) -> bool:
        """Whether its child waits for a job, and could hear of one."""
        return self.child is not None and self.child.state.phase is Phase.IDLE and self.channel_closed_at is None

    @property
    def job_name(self) -> str:
        item = self.item  # another thread may ask while the pool's takes the task away
        return item.job.name if item else ""

    @property
    def is_ready(self) -> bool:
        """Whether its child has its model ready, and works or waits."""
        return self.child is not None and self.child.state.phase not in STARTUP_PHASES
