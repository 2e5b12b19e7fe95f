"""TensorRT and TensorRT-RTX: they build engines, say what these will run, and run them on the device."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from se_deploy.backends.backend import Backend, Engines, Findings, Form, Planning, SelfCheck, Triton
from se_deploy.backends.tensorrt.flavours import TENSORRT as _FULL
from se_deploy.backends.tensorrt.flavours import TENSORRT_RTX as _RTX
from se_deploy.backends.tensorrt.policies import POLICIES
from se_deploy.options import EngineFeatures
from se_deploy.targets import Device, Target, resolve_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    import onnx_ir as ir

    from se_deploy.backends.backend import Compiler, SessionOptions
    from se_deploy.backends.engine import Engine
    from se_deploy.backends.tensorrt.flavours import Flavour
    from se_deploy.protocols import Planner, Runtime
    from se_deploy.se_blocks.types import SEBlock

PORTABLE_TARGETS = tuple(map(resolve_target, ("sm80", "sm86", "sm89", "sm120")))
"""What one TensorRT-RTX engine serves by default: their plans are one and the same, Turing's is not."""

_APART = frozenset({"sm75", "sm121"})
"""What TensorRT-RTX builds for besides: by default only on such a machine, and for it alone."""

_SUFFIXES = (".engine", ".plan", ".trt")
_PROBE_FULL = """
import tensorrt as m
strong = hasattr(m.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED')
print(json.dumps({'version': m.__version__, 'strongly_typed': strong}))
"""
_PROBE_RTX = """
import tensorrt_rtx as m
targets = [n.lower() for n in m.ComputeCapability.__members__ if n.startswith('SM')]
print(json.dumps({'version': m.__version__, 'targets': targets}))
"""


def _runtime(flavour: Flavour) -> Callable[[SessionOptions], Runtime]:
    def opened(options: SessionOptions) -> Runtime:
        from se_deploy.backends.tensorrt.session import TrtRuntime

        return TrtRuntime(
            flavour.name, options.cuda_graph, plugins=options.plugins, host_code=options.host_code
        )

    return opened


def _compiler(flavour: Flavour) -> Callable[[], Compiler]:
    def started() -> Compiler:
        from se_deploy.backends.tensorrt.compiler import Compiler as TrtCompiler

        return TrtCompiler(flavour.name)

    return started


def _planner(flavour: Flavour) -> Callable[[Target | None], AbstractContextManager[Planner]]:
    @contextlib.contextmanager
    def started(target: Target | None) -> Iterator[Planner]:
        from se_deploy.backends.tensorrt.planner import start_planner

        planner = start_planner(flavour.name, target)
        try:
            yield planner
        finally:
            planner.close()

    return started


def _here() -> Target | None:
    from se_deploy.backends.tensorrt import gpu

    found = gpu.here()
    if found is None:
        return None
    return Target(f"sm{found.sm}", found.sm, Device(found.name, found.name, found.sm, found.memory_gb_s))


def _rtx_targets() -> tuple[Target, ...]:
    here = _here()
    return (here,) if here is not None and here.name in _APART else PORTABLE_TARGETS


def _check(flavour: Flavour) -> Callable[[EngineFeatures], None]:
    def check(asked: EngineFeatures) -> None:
        from se_deploy.backends.tensorrt.compiler import Compiler as TrtCompiler

        if asked != EngineFeatures():
            compiler = TrtCompiler(flavour.name)
            try:
                compiler.check_features(asked)
            finally:
                compiler.close()

    return check


def _dla_notes(model: ir.Model, blocks: Sequence[SEBlock], asked: EngineFeatures) -> tuple[str, ...]:
    from se_deploy.backends.tensorrt import dla

    return () if asked.dla_core is None else dla.notes(model, blocks)


def _command(engine: str, onnx: str, built: Engine) -> str:
    from se_deploy.backends.tensorrt.command import build_command

    return build_command(engine, onnx, built)


def _load_command(flavour: Flavour) -> Callable[[str], str]:
    return lambda engine: f"{flavour.tool} --loadEngine={engine}"


def _form(flavour: Flavour) -> Callable[[], Form]:
    def form() -> Form:
        from se_deploy.fusion import FusionRules
        from se_deploy.passes.registry import Scope

        scope = Scope.BY_PLAN if flavour is _RTX else Scope.LESS_WORK  # full TensorRT times, it plans nothing
        return Form(FusionRules(respell=_RTX.name), scope, policy=POLICIES[flavour.name])

    return form


def _needs_rtx(version: str, targets: Sequence[str]) -> str:
    capabilities = " or ".join(f"{t.removeprefix('sm')[:-1]}.{t[-1]}" for t in targets)
    return f"{_RTX.title} {version} and a GPU of compute capability {capabilities}."


def _needs_full(version: str, targets: Sequence[str]) -> str:  # noqa: ARG001 - it has one, the model of GPU
    return f"{_FULL.title} {version}, exactly, and the model of GPU that it was built on."


def _read_rtx(answer: Mapping[str, Any], gpu: str | None) -> Findings:
    targets = ", ".join(str(target) for target in answer["targets"])
    here = _here()
    if here is not None and here.name not in answer["targets"]:
        gpu = None  # which runs none of its engines
    return Findings(
        f"{answer['version']}, builds for {targets}",
        can_build=(f"{_RTX.title} {answer['version']} engines for {targets}, without a GPU",),
        can_run=(f"{_RTX.title} engines",) if gpu else (),
    )


def _read_full(answer: Mapping[str, Any], gpu: str | None) -> Findings:
    version, runs = answer["version"], (f"{_FULL.title} engines",) if gpu else ()
    if not answer["strongly_typed"]:
        fix = f"use {_FULL.title} 10.3+"
        return Findings(f"{version}: no strongly typed networks", can_run=runs, fix=fix)
    builds = (f"{_FULL.title} {version} engines for this machine's {gpu}",) if gpu else ()
    return Findings(str(version), can_build=builds, can_run=runs)


TENSORRT_RTX = Backend(
    name=_RTX.name,
    title=_RTX.title,
    install=_RTX.install,
    packages=("tensorrt-rtx",),
    check=SelfCheck(_PROBE_RTX, _read_rtx),
    runs=frozenset({"engine"}),
    runtime=_runtime(_RTX),
    suffixes=_SUFFIXES,
    magic=_RTX.magic,
    has_power_meter=True,
    planning=Planning(_planner(_RTX), targets=True, decides_rewrites=True),
    engines=Engines(
        _compiler(_RTX),
        _command,
        _load_command(_RTX),
        _needs_rtx,
        _RTX.module,
        default_targets=_rtx_targets,
        here=_here,
        check=_check(_RTX),
    ),
    form=_form(_RTX),
)
TENSORRT = Backend(
    name=_FULL.name,
    title=_FULL.title,
    install=_FULL.install,
    packages=("tensorrt",),
    check=SelfCheck(_PROBE_FULL, _read_full),
    install_on_jetson=_FULL.install_on_jetson,
    runs=frozenset({"engine"}),
    runtime=_runtime(_FULL),
    suffixes=_SUFFIXES,
    magic=_FULL.magic,
    has_power_meter=True,
    planning=Planning(_planner(_FULL), without_device=False, targets=True),
    engines=Engines(
        _compiler(_FULL),
        _command,
        _load_command(_FULL),
        _needs_full,
        _FULL.module,
        here=_here,
        check=_check(_FULL),
        notes=_dla_notes,
    ),
    triton=Triton("tensorrt_plan", "tensorrt", "model.plan"),
    form=_form(_FULL),
)
