"""What one backend is and can do, as values: steps above are given these, and never ask for a name.

Nothing here imports a runtime or a compiler; a backend's callables do, when they are called.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from se_deploy.quantization.policies import PORTABLE, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import onnx_ir as ir
    from torch import nn

    from se_deploy.backends.engine import BuildOptions, Engine
    from se_deploy.frontend.zoo import Network
    from se_deploy.fusion import FusionRules
    from se_deploy.options import EngineFeatures
    from se_deploy.passes.registry import Scope
    from se_deploy.protocols import Planner, Progress, Runtime, Session
    from se_deploy.quantization.reconstruction import Trainer
    from se_deploy.se_blocks.types import SEBlock
    from se_deploy.targets import Target

Kind = Literal["onnx", "engine"]
"""What a file is: an ONNX graph, or what a compiler made of one."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How an artifact is run."""

    threads: int = 0  # within one operator; 0 leaves the choice to the runtime
    device: str = "cpu"  # or "cuda"; an engine runs on its GPU whatever is said
    exact: bool = False  # a graph runs node by node, as it stands: the numbers that the file means
    cuda_graph: bool | None = None  # an engine's timed calls replay a CUDA graph; None: where that works
    lean: bool = False  # every tensor is freed as soon as it can be: for many outputs
    plugins: tuple[Path, ...] = ()  # shared libraries with operators that an engine has
    host_code: bool = False  # an engine carries a runtime of its own, which may run


class Compiler(Protocol):
    """Builds engines, and serves build after build until it is closed."""

    @property
    def version(self) -> str:
        """The compiler's version."""

    def build(self, model: ir.Model, options: BuildOptions, *, progress: Progress) -> Engine:
        """Build an engine. Raises: BuildFailed with the compiler's reason, BadInput, UnsupportedGraph."""

    def check_target(self, target: Target) -> None:
        """Raises: BadInput where this compiler cannot build for `target`."""

    def close(self) -> None:
        """Free what the compiler holds."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a self-check's answer means for this machine."""

    detail: str  # the version and what goes with it
    can_build: tuple[str, ...] = ()
    can_run: tuple[str, ...] = ()
    fix: str | None = None  # set where it is here and of no use: what to do about it


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """How `doctor` looks for a backend: in a process of its own, so that a broken one is only a line."""

    code: str  # Python that prints one JSON object, its last line: the answer; `json` is imported
    read: Callable[[Mapping[str, Any], str | None], Findings]  # answer, name of the NVIDIA GPU if any


@dataclass(frozen=True, slots=True)
class Planning:
    """How a backend says what it would run."""

    open: Callable[[Target | None], AbstractContextManager[Planner]]  # for a target; None: its default
    without_device: bool = True
    targets: bool = False  # whether its plans differ by target
    decides_rewrites: bool = False  # whether a plan is quick and true enough to choose rewrites by


def _nowhere() -> None:
    """Return no GPU."""


def _nothing_to_say(*_: object) -> tuple[str, ...]:
    """Return no warnings on a network and its blocks."""
    return ()


def _takes_all(_: EngineFeatures) -> None:
    """Refuse nothing."""


@dataclass(frozen=True, slots=True)
class Engines:
    """How a backend builds engines, and what can be said of one without loading it."""

    compiler: Callable[[], Compiler]  # raises MissingRuntime with the install command
    command: Callable[[str, str, Engine], str]  # engine, ONNX file, build: the vendor's line for the same
    load_command: Callable[[str], str]  # engine: the vendor's line that runs it
    needs: Callable[[str, Sequence[str]], str]  # version, targets: what a device must have
    module: str  # the Python module that loads an engine on the device
    default_targets: Callable[[], tuple[Target, ...]] = tuple  # where nothing is said; () for this device
    here: Callable[[], Target | None] = _nowhere  # the GPU at hand, called by its own name
    check: Callable[[EngineFeatures], None] = _takes_all  # raises BadInput for what it cannot do
    notes: Callable[[ir.Model, Sequence[SEBlock], EngineFeatures], tuple[str, ...]] = _nothing_to_say


@dataclass(frozen=True, slots=True)
class Triton:
    """What Triton Inference Server calls a backend and the file that it loads."""

    platform: str
    backend: str
    file: str


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a graph that a backend likes best."""

    fusion: FusionRules  # what a verdict may ask for
    scope: Scope  # which rewrites are right unasked; all, where a plan says what pays
    constant_weights: bool = False  # whether its kernels cannot use weights that are computed per image
    policy: Policy = PORTABLE  # where Q/DQ goes, and what the rest runs in


def _portable() -> Form:
    from se_deploy.fusion import FusionRules  # noqa: PLC0415 - --help imports no onnx
    from se_deploy.passes.registry import Scope  # noqa: PLC0415 - --help imports no onnx

    return Form(FusionRules(), Scope.LESS_WORK)


@dataclass(frozen=True, slots=True)
class Backend:
    """One way of running or building networks, found by its name in `registry`."""

    name: str  # as --runtime takes it and as results spell it
    title: str  # as people write it
    install: str  # the command that installs it
    check: SelfCheck
    packages: tuple[str, ...] = ()  # distributions whose versions belong into a report
    install_on_jetson: str | None = None  # where it differs
    runs: frozenset[Kind] = frozenset()
    runtime: Callable[[SessionOptions], Runtime] | None = None  # opens what it runs
    network: Callable[[Network | nn.Module, SessionOptions], Session] | None = None  # runs PyTorch's own
    trainer: Callable[[], Trainer] | None = None  # of INT8 roundings; raises MissingRuntime
    suffixes: tuple[str, ...] = ()  # of the engines that it runs; one that builds none wants no manifest
    magic: bytes = b""  # what its engines begin with
    has_power_meter: bool = False  # whether it runs where the machine's power sensors measure
    planning: Planning | None = None
    engines: Engines | None = None
    triton: Triton | None = None
    form: Callable[[], Form] = field(default=_portable)
