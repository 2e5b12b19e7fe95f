"""Whether INT8 pays on the target: as its compiler plans, as published fusion rules model it, or as timed.

Full TensorRT plans on its own GPU only. With one at hand both precisions can be built and timed there;
without one the roofline of a modelled plan, in which requantization is part of the kernel before it, says
whether INT8 can pay at all. What nobody can say is said to be unknown, and no gate passes on it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import data, graph, locks
from se_deploy.backends import registry
from se_deploy.backends.engine import BuildOptions
from se_deploy.commands import compilers, lowering, shapes
from se_deploy.errors import BadInput, MissingRuntime
from se_deploy.profiling import latency
from se_deploy.protocols import TensorSpec, silent
from se_deploy.quantization.chain import ModelledPlanner
from se_deploy.schema import common, input_spec

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.backends.backend import Backend
    from se_deploy.commands.lowering import Destination, Worth
    from se_deploy.protocols import Arrays, Planner, Progress

_NO_TARGET = "a target that nobody named"


@dataclass(frozen=True, slots=True)
class Unweighed:
    """Nobody can say here whether INT8 pays, and why."""

    cause: str
    known: bool = False
    worth_it: bool = False

    @property
    def reason(self) -> str:
        """The same as a sentence."""
        return f"it is not known whether INT8 pays: {self.cause}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Nothing was measured that would be worth a warning."""
        return ()

    @property
    def failures(self) -> tuple[str, ...]:
        """What fails where INT8 has to pay: an unknown benefit is none."""
        return (self.reason,)


def weighed(
    int8: ir.Model,
    fp16: ir.Model,
    *,
    to: Destination,
    planner: Planner | None,
    built: lowering.Planned | None = None,
    timed: bool = False,
    progress: Progress = silent,
) -> Worth | Unweighed:
    """Return INT8 against FP16 on the runtime and target of `to`, or why nobody can say.

    `planner` is the runtime's own, where it plans on this machine; `built` an FP16 plan at hand. With `timed`
    a runtime that builds for the GPU at hand builds both there. Raises: BuildFailed.
    """
    if planner is not None:
        return lowering.worth(int8, fp16, planner=planner, targets=to.targets, built=built)
    backend = to.backend
    if backend is None:
        return Unweighed("no runtime was named; give --runtime, and --target for its roofline")
    if backend.engines is None:
        return Unweighed(f"{backend.title} says nothing of what a graph costs; `profile` times both files")
    if timed:
        found = _timed(int8, fp16, backend, to)
        if found is not None:
            return found
    target = to.targets[0].name if to.targets else _NO_TARGET
    model = shapes.SizedPlanner(ModelledPlanner(backend.name, target), to.sizes)
    progress("model both plans", 0, 1)
    try:
        return lowering.worth(int8, fp16, planner=model, targets=to.targets)
    except BadInput as e:  # a size is free that nobody named, and `quantize` needs none
        return Unweighed(f"{e.message}; {e.hint}")


def _timed(int8: ir.Model, fp16: ir.Model, backend: Backend, to: Destination) -> Worth | None:
    """Build both for the GPU at hand and time them; None without one, or where the times are not stable."""
    engines = compilers.engines_of(backend)
    here = engines.here()
    if here is None or (to.targets and here.name not in {target.name for target in to.targets}):
        return None
    plans, times = [], []
    try:
        compiler = engines.compiler()
    except MissingRuntime:
        return None
    try:
        with locks.scratch() as folder:
            for name, model in (("int8", int8), ("fp16", fp16)):
                sized = _sized(model, to)
                engine = compiler.build(sized, BuildOptions(targets=to.targets), progress=silent)
                path = folder / f"{name}.engine"
                path.write_bytes(engine.data)
                with registry.engine_runtime(backend).open(path) as session:
                    times.append(latency.measure(session, _feeds(session.inputs)))
                plans.append(engine.plan)
    finally:
        compiler.close()
    if not all(one.stable for one in times):
        return None
    worth = lowering.Worth(plans[0], plans[1], None, times[0].p50_ms, times[1].p50_ms)
    return dataclasses.replace(worth, timed_on=here.called)


def _sized(model: ir.Model, to: Destination) -> ir.Model:
    """Return the graph at the sizes that are timed: the user's or the file's own, one image."""
    image = input_spec.read(model.metadata_props)
    sizes = shapes.settled(shapes.tensor_specs(model), "a latency", image=image, named=to.sizes)
    return graph.tidy(shapes.at(model, sizes, batch=True))


def _feeds(inputs: tuple[TensorSpec, ...]) -> Arrays:
    """Return one batch of random numbers for a session."""
    fixed = [dataclasses.replace(spec, dims=tuple(d or 1 for d in spec.dims)) for spec in inputs]
    return next(iter(data.random(fixed, count=1, seed=0).batches(1)))


def to_schema(found: Worth | Unweighed | None) -> common.Worth | None:
    """Return INT8 against FP16; None where it is not known."""
    if found is None or isinstance(found, Unweighed):
        return None
    return common.Worth(
        fp16_bytes=found.fp16.activation_bytes,
        int8_bytes=found.int8.activation_bytes,
        fp16_kernels=found.fp16.kernels,
        int8_kernels=found.int8.kernels,
        fp16_ms=found.fp16_ms,
        int8_ms=found.int8_ms,
        device=found.device.name if found.device else None,
        recommended="int8" if found.worth_it else "fp16",
        reason=found.reason,
        timed_on=found.timed_on,
    )


def unknown(found: Worth | Unweighed | None) -> str | None:
    """Return why it is not known whether INT8 pays; None where it is, or where nobody asked."""
    return found.cause if isinstance(found, Unweighed) else None
