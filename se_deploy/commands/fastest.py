"""An engine built once, or several times with the fastest kept: TensorRT times kernels, and timings vary."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from se_deploy import graph, locks, verification
from se_deploy.backends import registry
from se_deploy.backends.backend import SessionOptions
from se_deploy.profiling import latency
from se_deploy.protocols import silent
from se_deploy.report import units

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.backends.backend import Backend, Compiler
    from se_deploy.backends.engine import BuildOptions, Engine
    from se_deploy.protocols import Progress

_WARMUP_MS, _DURATION_S, _CALLS = 200, 1.0, 20
"""trtexec's warm-up, and a third of its duration: builds are compared with each other, no latency is told."""


def built(
    backend: Backend,
    compiler: Compiler,
    model: ir.Model,
    options: BuildOptions,
    *,
    progress: Progress = silent,
) -> Engine:
    """Build `model`; of several builds, the one with the lowest median latency on the device at hand.

    Raises as Compiler.build does, and what opening an engine raises.
    """
    count = options.features.best_of
    first = compiler.build(model, options, progress=progress)
    if count == 1:
        return first
    made = [first, *(compiler.build(model, options, progress=progress) for _ in range(count - 1))]
    times = [_median_ms(backend, engine, model, options) for engine in made]
    best = min(range(count), key=times.__getitem__)
    others = ", ".join(units.milliseconds(time) for i, time in enumerate(times) if i != best)
    note = f"the fastest of {count} builds was kept: {units.milliseconds(times[best])}, the others {others}"
    return dataclasses.replace(made[best], warnings=(*made[best].warnings, note))


def _median_ms(backend: Backend, engine: Engine, model: ir.Model, options: BuildOptions) -> float:
    """Time an engine at the shapes that it was tuned for."""
    asked = SessionOptions(plugins=options.features.plugins, host_code=options.features.version_compatible)
    runtime = registry.engine_runtime(backend, asked)
    shapes = {name: profile.opt for name, profile in engine.shapes.items()}
    with locks.scratch() as folder:
        path = folder / f"one{backend.suffixes[0]}"
        path.write_bytes(engine.data)
        if options.features.strip_weights:
            graph.save(model, path.with_name(f"{path.name}.onnx"))
        with runtime.open(path) as session:
            feeds = verification.noise(session.inputs, shapes, image=None, seed=0)
            timed = latency.measure(
                session, feeds, warmup_ms=_WARMUP_MS, duration_s=_DURATION_S, iterations=_CALLS
            )
    return timed.p50_ms
