"""What surrounds an engine's device time: launches, host copies, and each layer's own time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from se_deploy.backends.tensorrt.cuda import Cuda

Layers = tuple[tuple[str, float], ...]
"""Name and mean ms of each layer, in the order they run."""


def launch_ms(cuda: Cuda, launch: Callable[[], None], calls: int) -> float:
    """Return what the host takes to launch a call on an idle stream, the median in ms."""
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        launch()
        times.append((time.perf_counter_ns() - start) / 1e6)
        cuda.synchronize()
    return float(np.median(times))


def copy_ms(cuda: Cuda, copy: Callable[[], None], calls: int) -> float:
    """Return what copies take on the device's clock, the median in ms; host memory is not pinned."""
    return float(np.median([cuda.elapsed_ms(copy) for _ in range(calls)]))


def layer_times(
    trt: Any,  # noqa: ANN401  (the modules are untyped)
    context: Any,  # noqa: ANN401
    cuda: Cuda,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    memory: Mapping[str, int],
    calls: int,
) -> Layers:
    """Return each layer's mean time over `calls` calls in `context`, which is used for nothing else.

    `shapes`: of the inputs; `memory`: every tensor's pointer. A profiler makes the layers run one by one, so
    that their sum is more than a call's time. Empty where the runtime reports none.
    """
    profiler = _profiler(trt)
    context.profiler = profiler
    for name, shape in shapes.items():
        context.set_input_shape(name, shape)
    for name, pointer in memory.items():
        context.set_tensor_address(name, pointer)
    for warm in (True, False):
        for _ in range(1 if warm else calls):
            context.execute_async_v3(int(cuda.stream))
            cuda.synchronize()
        if warm:
            profiler.totals.clear()
    return tuple((name, total / calls) for name, total in profiler.totals.items())


def _profiler(trt: Any) -> Any:  # noqa: ANN401
    """Make a profiler of the module's own class that adds up what each layer takes."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # the base comes from the module given
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.totals: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.totals[layer_name] = self.totals.get(layer_name, 0.0) + ms

    return Profiler()
