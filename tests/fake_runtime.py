"""A runtime without Ray, for tests of the scheduler: runs are entries of a dictionary that the test moves."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.runtime import Capacity, Observation, RunState, RuntimeUnavailable
from trainers.spec import RunSpec


@dataclass
class FakeRuntime:
    """Launches nothing; `runs` says what a cluster would say. Stopping takes one look to take effect."""

    total: Capacity = field(default_factory=lambda: Capacity(cpus=2, gpus=0, nodes=1))
    runs: dict[str, Observation] = field(default_factory=dict)
    launched: list[RunSpec] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    away: bool = False

    async def launch(self, spec: RunSpec) -> None:
        self._answer()
        if spec.run_id not in self.runs:
            self.launched.append(spec)
            self.runs[spec.run_id] = Observation(RunState.RUNNING, alive=True)

    async def observe(self, run_id: str) -> Observation:
        self._answer()
        seen = self.runs.get(run_id, Observation(RunState.UNKNOWN, alive=False))
        if run_id in self.stopped and seen.alive:
            self.runs[run_id] = Observation(RunState.STOPPED, alive=False)
        return seen

    async def stop(self, run_id: str) -> None:
        self._answer()
        self.stopped.append(run_id)

    async def log_tail(self, run_id: str, lines: int = 50) -> list[str]:
        self._answer()
        return ["the last line"]

    async def capacity(self) -> Capacity:
        self._answer()
        return self.total

    async def live_runs(self) -> list[str]:
        self._answer()
        return [run_id for run_id, seen in self.runs.items() if seen.alive]

    def ends(self, run_id: str, state: RunState, message: str = "") -> None:
        """The run's processes are gone."""
        self.runs[run_id] = Observation(state, alive=False, message=message)

    def _answer(self) -> None:
        if self.away:
            raise RuntimeUnavailable("the cluster is away")
