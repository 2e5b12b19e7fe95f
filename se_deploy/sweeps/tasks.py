"""What is to be done and what came of it: the types that an executor and a sweep share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Protocol

from se_deploy.errors import SeDeployError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path


class LostWorker(SeDeployError):
    """A process that ended before its task did, or a node that went away."""


class TimeLimit(SeDeployError):
    """A task that took longer than it may."""


class NoWorker(SeDeployError):
    """A task that needs a device which no worker has."""


class NotShared(SeDeployError):
    """A folder that all nodes are to share, and one of them does not see."""


_OUTSIDE = "elsewhere"

KEPT = "kept"
"""The folder for what tasks make alike, in the folder of a run or in one that all nodes share."""


def inside(name: str) -> str:
    """Return a name below the working directory for a file that may lie anywhere."""
    parts = PurePath(name).parts
    if not PurePath(name).is_absolute() and ".." not in parts:
        return name
    kept = ["up" if part == ".." else part for part in parts if part != PurePath(name).anchor]
    return PurePath(_OUTSIDE, *kept).as_posix()


@dataclass(frozen=True, slots=True)
class Places:
    """The folders of a task: where its work lies, and where what it makes belongs."""

    inputs: Path  # the working directory: input files lie under the names that the task knows them by
    before: Path | None  # what the task that this one follows made
    output: Path
    moved: bool = False  # inputs came from another machine, all of them below `inputs`
    kept: Path | None = None  # where what tasks of one run make alike is kept (`once`); None: nowhere

    def at(self, name: str) -> str:
        """Return where the input `name` lies: one that came along and led out has its own place here."""
        return inside(name) if self.moved else name


@dataclass(frozen=True, slots=True)
class Task:
    """A call of `function(arguments, places)` in a process of its own."""

    key: str  # of what it computes: equal keys, equal results
    function: Callable[[object, Places], None]  # of a module's top level, so that other processes find it
    arguments: object
    files: Mapping[str, str]  # inputs: the name that the task knows it by, and its SHA-256
    after: str | None = None  # the key of the task whose output this one reads
    reuses: str | None = None  # the key of one that makes some of the same; failures are not inherited
    needs: str | None = None  # the tag of a device; None: any worker will do
    seconds: float | None = None  # it may take; None: as long as it takes


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task has no result, as an error says it."""

    kind: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task; without a failure its files are in `output`."""

    key: str
    node: str
    seconds: float
    attempts: int
    failure: Failure | None = None
    output: Path | None = None
    note: str | None = None  # what went otherwise than usual, and cost time alone


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that works on tasks, and the tags of its devices."""

    name: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Count:
    """How far an executor is."""

    running: int
    waiting: int


class Executor(Protocol):
    """Who works on tasks."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The machines that take part."""

    def run(
        self,
        tasks: Sequence[Task],
        inputs: Mapping[str, Path],
        *,
        ended: Callable[[Outcome], None],
        count: Callable[[Count], None],
    ) -> None:
        """Work on every task, in the order given where there is a choice; `ended` is told of each.

        `inputs`: where the files lie here, by SHA-256. A task whose predecessor failed fails as that did. An
        outcome's folder is gone once `ended` returns and no task that follows needs it.
        """


def failure_of(error: SeDeployError) -> Failure:
    """Return what an error says."""
    return Failure(error.kind, error.message, error.hint)


def inherited(task: Task, before: Outcome) -> Outcome:
    """Return the outcome of a task whose predecessor failed: that failure, without any work."""
    return Outcome(task.key, before.node, 0.0, 0, before.failure)
