"""Who works on one network: this machine alone, or the workers of a cluster for what is independent.

Each plan of a search for rewrites and each layer of a sensitivity analysis is a job of its own. What comes of
it is the same wherever it is done: workers that compute otherwise get no job.
"""

from __future__ import annotations

import contextlib
import functools
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from se_deploy.backends import keeping, registry
from se_deploy.commands import packages, portable, shapes
from se_deploy.errors import BuildFailed, SeDeployError
from se_deploy.protocols import Each, in_turn
from se_deploy.schema import common
from se_deploy.sweeps import cluster
from se_deploy.sweeps import jobs as on_nodes
from se_deploy.sweeps.jobs import Jobs, Kind, Share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import onnx_ir as ir

    from se_deploy.backends.backend import Planning
    from se_deploy.plan import Plan
    from se_deploy.targets import Target

S = TypeVar("S")
J = TypeVar("J")
R = TypeVar("R")

LOCAL = "local"


class WorkersKeys(TypedDict):
    """The keys of who worked, in the objects of verbs that can work on a cluster."""

    on: str
    nodes: tuple[common.NodeShare, ...]


_USED = frozenset({"onnx", "onnx-ir", "numpy"})
"""What jobs use besides a compiler and what runs graphs."""

_INFO = Path("/proc/cpuinfo")  # of Linux; other systems have none
_VECTOR = ("sse", "avx", "fma", "amx", "asimd", "sve", "i8mm", "bf16", "fphp", "sme")
"""How the names of the instructions begin that a runtime chooses its kernels by: sums are ordered by them."""

_NO_JOBS = (
    "no plan and no layer's sensitivity was asked for; a search plans where a --runtime or --target is named "
    "whose compiler says what pays, and sensitivity is measured for --min-sqnr, --max-drop and --keep"
)

_RETRIES = 1  # of a node's first process, when the cluster is joined


@dataclass(frozen=True, slots=True)
class Worked:
    """Who worked on the jobs of one command."""

    on: str = LOCAL
    shares: tuple[Share, ...] = ()  # what each node did; () on this machine alone
    warnings: tuple[str, ...] = ()


ALONE = Worked()
"""This machine did all of it."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Who works on the jobs of one command."""

    on: str = LOCAL
    each: Each = in_turn
    width: int = 1  # jobs at a time
    nodes: Jobs | None = None  # None: this machine alone

    def worked(self) -> Worked:
        """Return what each node did so far, and which nodes got no job."""
        if self.nodes is None:
            return Worked(self.on)
        shares, notes = self.nodes.shares, self.nodes.left_out
        if not shares:
            notes = (*notes, f"--on {self.on} had no effect: {_NO_JOBS}")
        return Worked(self.on, shares, notes)


HERE = Workers()
"""This machine alone."""


@contextlib.contextmanager
def opened(on: str) -> Iterator[Workers]:
    """Open who works: "local", "ray" on a node of a cluster, or "ray://HOST:PORT".

    Raises: MissingRuntime without Ray; BadInput where no cluster can be joined, or none of its nodes computes
    as this machine does.
    """
    if on == LOCAL:
        yield HERE
        return
    with cluster.opened(on, retries=_RETRIES, store=None) as joined:
        found = on_nodes.opened(joined, facts)
        yield Workers(on, _OnNodes(found), found.width, found)


def require(on: str) -> None:
    """Raise what `opened` raises where nobody can be reached: before any work is done."""
    if on != LOCAL:
        cluster.reached(on)


def facts() -> dict[str, str]:
    """Return what results depend on: the packages that jobs use, and the processor's vector instructions."""
    backends = [b for b in registry.every() if b.planning is not None and b.planning.decides_rewrites]
    used = {name for one in (*backends, registry.graphs()) for name in one.packages} | _USED
    versions = {name: version for name, version in packages.versions().items() if name in used}
    return versions | {"processor": f"{platform.machine()} with {_instructions()}"}


def _instructions() -> str:
    """Return the processor's vector instructions: as the system lists them, else those that numpy found."""
    lines = _INFO.read_text("utf-8", errors="replace").splitlines() if _INFO.is_file() else []
    named = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    listed = sorted(word for word in named.split() if word.startswith(_VECTOR))
    return " ".join(listed) or f"what numpy calls {' '.join(_found_by_numpy()) or 'its baseline'}"


def _found_by_numpy() -> list[str]:
    import numpy as np  # noqa: PLC0415 - --help imports no numpy

    build: Any = np.show_config(mode="dicts")
    return sorted(build.get("SIMD Extensions", {}).get("found", ()))


@dataclass(frozen=True, slots=True)
class _OnNodes:
    """Works on jobs where a cluster puts them (`protocols.Each`)."""

    nodes: Jobs

    def __call__(
        self, function: Callable[[S, J], R], shared: S, jobs: Iterable[J], ended: Callable[[int], None]
    ) -> list[R]:
        """Return `function(shared, job)` of every job. Raises: what it raises; LostWorker."""
        kind = Kind(function.__name__.strip("_"), _worked, _unpacked)
        packed = portable.dumps((function, shared))
        answers = self.nodes.each(kind, packed, map(portable.dumps, jobs), ended)
        return [_result(portable.loads(data)) for data in answers]


@dataclass(frozen=True, slots=True)
class _Raised:
    """An error that the user can act on, on its way back: an exception of ours does not pickle."""

    kind: type[SeDeployError]
    message: str
    hint: str


def _unpacked(data: bytes) -> Any:  # noqa: ANN401 - a function, and what its jobs share
    """Return what jobs share, on a node."""
    return portable.loads(data)


def _worked(shared: tuple[Callable[[Any, Any], Any], Any], job: bytes) -> bytes:
    """Work on a job, on a node."""
    function, own = shared
    _keep_compilers()
    try:
        return portable.dumps(function(own, portable.loads(job)))
    except SeDeployError as e:
        return portable.dumps(_Raised(type(e), e.message, e.hint))


def _result(answer: Any) -> Any:  # noqa: ANN401 - whatever the function returned
    if isinstance(answer, _Raised):
        raise answer.kind(answer.message, hint=answer.hint)
    return answer


@functools.cache
def _keep_compilers() -> contextlib.ExitStack:
    """Keep the compilers' processes of this node for its next jobs; they end with its own."""
    stack = contextlib.ExitStack()
    stack.enter_context(keeping.kept())
    return stack


@dataclass(frozen=True, slots=True)
class Asked:
    """What plans of one network are made for."""

    backend: str
    target: Target | None
    sizes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What a compiler said that builds no such graph."""

    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class WorkersPlanner:
    """Plans graphs on workers, each as a job (`protocols.ManyPlanner`)."""

    workers: Workers
    asked: Asked

    @property
    def width(self) -> int:
        """How many graphs are planned at a time."""
        return self.workers.width

    def plan(self, model: ir.Model) -> Plan:
        """Plan one graph. Raises: BuildFailed; BadInput where a size is free that nobody named."""
        (answer,) = self.plan_each([model])
        if isinstance(answer, BuildFailed):
            raise answer
        return answer

    def plan_each(self, models: Iterable[ir.Model]) -> Sequence[Plan | BuildFailed]:
        """Plan every graph, in order; one that the compiler refuses has its refusal for a plan."""
        answers = self.workers.each(_planned, self.asked, models, _nobody)
        return [BuildFailed(a.message, hint=a.hint) if isinstance(a, _Refusal) else a for a in answers]


@contextlib.contextmanager
def planner(
    workers: Workers, planning: Planning, asked: Asked
) -> Iterator[WorkersPlanner | shapes.SizedPlanner]:
    """Open the compiler that plans what is asked: on the workers, or here."""
    if workers.nodes is not None:
        yield WorkersPlanner(workers, asked)
        return
    with planning.open(asked.target) as one:
        yield shapes.SizedPlanner(one, asked.sizes)


def _planned(asked: Asked, model: ir.Model) -> Plan | _Refusal:
    planning = registry.get(asked.backend).planning
    if planning is None:
        raise ValueError(f"'{asked.backend}' was asked for a plan, and makes none")
    with planner(HERE, planning, asked) as one:
        try:
            return one.plan(model)
        except BuildFailed as e:
            return _Refusal(e.message, e.hint)


def _nobody(_done: int) -> None:
    """Tell nobody how many plans are made: the search says which it asked for."""


def to_schema(worked: Worked) -> WorkersKeys:
    """Return who worked, as results have it."""
    nodes = tuple(common.NodeShare(name=s.node, jobs=s.jobs, seconds=s.seconds) for s in worked.shares)
    return {"on": worked.on, "nodes": nodes}
