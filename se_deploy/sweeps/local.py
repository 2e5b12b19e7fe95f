"""Tasks in processes of this machine, as many at a time as its memory allows."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy import locks
from se_deploy.sweeps import isolation
from se_deploy.sweeps.tasks import KEPT, Count, Node, Outcome, Places, inherited

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from se_deploy.sweeps.tasks import Task

TASK_BYTES = 2_000_000_000
"""Memory that one task is reckoned to take: PyTorch, a compiler and its network of some 100 MB."""

_MEMORY = Path("/proc/meminfo")


def jobs_that_fit() -> int:
    """Return how many tasks this machine has memory and processors for; at least one."""
    return max(1, min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, _in_memory()))


def _in_memory() -> int:
    lines = _MEMORY.read_text("ascii").splitlines() if _MEMORY.is_file() else []
    free_kb = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return 1 if free_kb is None else free_kb * 1024 // TASK_BYTES


@dataclass(frozen=True, slots=True)
class Local:
    """Processes of this machine."""

    base: Path  # where the names of input files begin
    jobs: int
    retries: int
    store: Path | None = None  # where what tasks make alike is kept; None: in a folder of this run

    @property
    def nodes(self) -> tuple[Node, ...]:
        """This machine, which builds for every target that a compiler here builds for."""
        return (Node(platform.node()),)

    def run(
        self,
        tasks: Sequence[Task],
        inputs: Mapping[str, Path],  # noqa: ARG002 - the files lie where their names say
        *,
        ended: Callable[[Outcome], None],
        count: Callable[[Count], None],
    ) -> None:
        """Work on every task; see `Executor`."""
        with locks.scratch() as scratch:
            self._run(tasks, scratch, ended, count)

    def _run(
        self,
        tasks: Sequence[Task],
        scratch: Path,
        ended: Callable[[Outcome], None],
        count: Callable[[Count], None],
    ) -> None:
        children = isolation.Children()
        waiting = list(tasks)
        outcomes: dict[str, Outcome] = {}
        readers = Counter(task.after for task in tasks)  # of what a task makes, that have not ended
        running: dict[Future[Outcome], Task] = {}
        spent: dict[str | None, float] = {None: 0.0}  # seconds, with those of all that a task follows
        pool = ThreadPoolExecutor(self.jobs)

        def end(task: Task, outcome: Outcome) -> None:
            outcomes[outcome.key] = outcome
            spent[task.key] = spent[task.after] + outcome.seconds
            ended(outcome)
            readers[task.after] -= 1
            for key in filter(None, (task.key, task.after)):
                if not readers[key]:
                    shutil.rmtree(scratch / key, ignore_errors=True)

        try:
            while waiting or running:
                ready = (task for task in waiting if task.after is None or task.after in outcomes)
                for task in list(itertools.islice(ready, self.jobs - len(running) or 1)):
                    before = None if task.after is None else outcomes[task.after]
                    if before is not None and before.failure is not None:
                        waiting.remove(task)
                        end(task, inherited(task, before))
                    elif len(running) < self.jobs:
                        waiting.remove(task)
                        left = None if task.seconds is None else max(0.0, task.seconds - spent[task.after])
                        made = None if before is None else before.output
                        kept = scratch / KEPT if self.store is None else self.store.absolute() / KEPT
                        places = Places(self.base, made, scratch / task.key, kept=kept)
                        running[pool.submit(self._one, task, places, children, left)] = task
                count(Count(len(running), len(waiting)))
                for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                    end(running.pop(future), future.result())
        finally:
            children.close()
            pool.shutdown(wait=True, cancel_futures=True)

    def _one(
        self, task: Task, places: Places, children: isolation.Children, seconds: float | None
    ) -> Outcome:
        return isolation.attempted(
            task, places, platform.node(), children, seconds=seconds, retries=self.retries
        )
