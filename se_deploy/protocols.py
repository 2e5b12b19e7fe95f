"""What an early step may ask of a late one: a session to run, a compiler to plan, a line of progress.

They stand above every module that names them, so that imports point one way only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import onnx_ir as ir

    from se_deploy.errors import BuildFailed
    from se_deploy.plan import Plan

S = TypeVar("S")
J = TypeVar("J")
R = TypeVar("R")

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
Arrays = Mapping[str, Array]
"""Host arrays by tensor name; images are (N, C, H, W)."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of a graph's input or output; None where a dimension is free."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | None, ...]


class Session(Protocol):
    """A loaded model. Arrays are host numpy, NCHW, keyed by tensor name."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` must be fed."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Compute every output for one batch; the caller may keep the arrays."""

    def time(self, feeds: Arrays, calls: int) -> FloatArray:
        """Time each of `calls` calls in ms, shape (calls,); no warm-up, no host copies."""


@dataclass(frozen=True, slots=True)
class CallCost:
    """What a call costs besides the device's own time, medians in ms; None where a session cannot tell."""

    end_to_end_ms: float | None = None  # from host arrays to host arrays
    enqueue_ms: float | None = None  # what the host takes to launch a call
    h2d_ms: float | None = None  # the inputs' copies to the device
    d2h_ms: float | None = None  # the outputs' copies back
    layers: tuple[tuple[str, float], ...] = ()  # name and mean ms, in the order they run
    cuda_graph: bool | None = None  # whether timed calls replay a CUDA graph
    notes: tuple[str, ...] = ()  # what could not be measured, and why


@runtime_checkable
class CostedSession(Session, Protocol):
    """A session that can tell what surrounds the device's time."""

    def cost(self, feeds: Arrays, calls: int) -> CallCost:
        """Measure over `calls` calls."""


class Queue(Protocol):
    """Calls on bound inputs that are launched without waiting for them."""

    def launch(self) -> None:
        """Put a call behind the others."""

    def wait(self) -> None:
        """Return when all of them are done."""


@runtime_checkable
class QueuedSession(Session, Protocol):
    """A session whose calls can be queued, so that several sessions share a device."""

    def queue(self, feeds: Arrays) -> Queue:
        """Bind `feeds`, and run them once."""


class Runtime(Protocol):
    """Something that runs artifacts of one kind."""

    @property
    def name(self) -> str:
        """The backend's name, as registered."""

    @property
    def device(self) -> str:
        """Where it runs: "cpu", "cuda" or the name of a device."""

    def open(self, artifact: Path | ir.Model) -> AbstractContextManager[Session]:
        """Load an artifact. Raises MissingRuntime (with the install command) or BadArtifact."""


class Planner(Protocol):
    """A compiler that can say what it would run, without a device."""

    def plan(self, model: ir.Model) -> Plan:
        """Plan `model`. Raises BuildFailed with the compiler's reason."""


@runtime_checkable
class ManyPlanner(Planner, Protocol):
    """Compilers that plan several graphs at a time; each plan is the one that `plan` gives."""

    @property
    def width(self) -> int:
        """How many graphs are planned at a time."""

    def plan_each(self, models: Iterable[ir.Model]) -> Sequence[Plan | BuildFailed]:
        """Plan every graph, in order; one that a compiler refuses has its refusal for a plan."""


class Each(Protocol):
    """Who works on jobs that do not depend on each other."""

    def __call__(
        self, function: Callable[[S, J], R], shared: S, jobs: Iterable[J], ended: Callable[[int], None]
    ) -> list[R]:
        """Return `function(shared, job)` of every job, in the order of the jobs.

        `function` is pure and of a module's top level: where it runs makes no difference. `ended` is told
        how many jobs are done.
        """


def in_turn(
    function: Callable[[S, J], R], shared: S, jobs: Iterable[J], ended: Callable[[int], None]
) -> list[R]:
    """Work on one job after the other, here (`Each`): what happens where nobody else was asked."""
    results = []
    for job in jobs:
        results.append(function(shared, job))
        ended(len(results))
    return results


OVERALL = "all steps"
"""The step that counts the others, where a command knows how many there are."""


class Progress(Protocol):
    """How a long step says how far it is; the command line shows it.

    A step begins when it is first named, and is done when `done` reaches `total`; what is named in between is
    part of it.
    """

    def __call__(self, step: str, done: int, total: int, found: str = "") -> None:
        """`done` of `total` units of `step` are finished; `found`: what it found, once it is done."""


def silent(step: str, done: int, total: int, found: str = "") -> None:
    """Report progress to nobody: the library's default."""
