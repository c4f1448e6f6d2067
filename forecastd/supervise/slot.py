"""A place for one child in a pool: it outlives the children that come and go in it, and remembers how often they did."""

from __future__ import annotations

from dataclasses import dataclass, field

from forecastd.supervise.board import Task
from forecastd.supervise.detector import Phase
from forecastd.supervise.policy import BackOff
from forecastd.supervise.process import ChildProcess

BEFORE_READY = {Phase.STARTING, Phase.LOADING, Phase.WARMING_UP}


@dataclass(eq=False)
class Slot:
    """A place for one child, and what it is at. `bundle` is the child's, once it is ready; `false_starts`: how many in a
    row did not come as far as their model."""

    child: ChildProcess | None = None
    task: Task | None = None
    bundle: str = ""
    warned: tuple[Phase, float] | None = None
    hung_up: float | None = None
    false_starts: int = 0
    back_off: BackOff = field(default_factory=BackOff)

    @property
    def idle(self) -> bool:
        """Whether its child waits for a job, and could hear of one."""
        return self.child is not None and self.child.watched.phase is Phase.IDLE and self.hung_up is None

    @property
    def job(self) -> str:
        task = self.task  # another thread may ask while the pool's takes the task away
        return task.job.name if task else ""

    @property
    def proven(self) -> bool:
        """Whether its child has its model ready, and works or waits."""
        return self.child is not None and self.child.watched.phase not in BEFORE_READY
