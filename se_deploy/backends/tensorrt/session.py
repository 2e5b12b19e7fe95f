"""TensorRT and TensorRT-RTX engines on the device: one class, given the imported module.

Device memory is taken once and kept, so that timed calls copy nothing.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from se_deploy.backends.sessions import checked, end_to_end_ms, shape_text
from se_deploy.backends.tensorrt import layouts, loading, timing
from se_deploy.backends.tensorrt.cuda import Cuda
from se_deploy.backends.tensorrt.flavours import FLAVOURS, TENSORRT_RTX
from se_deploy.backends.tensorrt.outputs import output_allocator
from se_deploy.errors import BadArtifact, BadInput, DeviceFailed
from se_deploy.protocols import CallCost, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx_ir as ir

    from se_deploy.backends.tensorrt.loading import Loaded
    from se_deploy.protocols import Array, Arrays, FloatArray


def kernel_cache(path: Path) -> Path:
    """Return where TensorRT-RTX keeps what it compiled for an engine: OUT.engine.cache beside OUT.engine."""
    return path.with_name(f"{path.name}.cache")


@dataclass(frozen=True, slots=True)
class TrtRuntime:
    """Opens engines (protocols.Runtime)."""

    name: str = TENSORRT_RTX.name
    cuda_graph: bool | None = None  # record each shape's launches and replay them; None: where that works
    plugins: tuple[Path, ...] = ()  # shared libraries with plug-ins that the engine has
    host_code: bool = False  # let a version-compatible engine run the runtime that it carries

    @property
    def device(self) -> str:
        """The device's name. Raises: MissingRuntime where there is none."""
        cuda = Cuda()
        try:
            return cuda.name
        finally:
            cuda.close()

    @contextlib.contextmanager
    def open(self, artifact: Path | ir.Model) -> Iterator[TrtSession]:
        """Load an engine.

        Raises: BadArtifact where it is none, or not for this version and device; MissingRuntime without a
        driver, a device or the module; DeviceFailed where the device has no memory for it.
        """
        if not isinstance(artifact, Path):
            raise BadArtifact("a graph is no engine", hint="build one with `se-deploy build-engine`")
        data = _read(artifact, self.name)
        cuda = Cuda()
        try:
            loaded = loading.load(
                loading.module(self.name), artifact, data, self.plugins, host_code=self.host_code
            )
            kept = kernel_cache(artifact)
            context = loading.context(loaded, cuda_graph=self.cuda_graph is not False, kept=kept)
            session = TrtSession(loaded, context, cuda, cuda_graph=self.cuda_graph, kept=kept)
            try:
                yield session
            finally:
                session.close()
        finally:
            cuda.close()


@dataclass(frozen=True, slots=True)
class TrtQueue:
    """Calls of one session on bound inputs (protocols.Queue)."""

    launch: Callable[[], None]
    wait: Callable[[], None]


_AGAIN = "build the engine again on this device, with the version that runs it"


class TrtSession:
    """A loaded engine (protocols.Session)."""

    def __init__(
        self,
        loaded: Loaded,
        context: Any,  # noqa: ANN401
        cuda: Cuda,
        *,
        kept: Path,
        cuda_graph: bool | None = None,
    ) -> None:
        """`context`: of the engine in `loaded`, which is on the device of `cuda`; `kept`: kernel_cache."""
        self._loaded = loaded  # the engine lives as long as its runtime does
        self._trt = trt = loaded.trt
        self._engine = engine = loaded.engine
        self._cuda = cuda
        self._kept = kept
        self._cuda_graph = cuda_graph
        self._records_itself = hasattr(trt, "CudaGraphStrategy")  # TensorRT-RTX, since its context was made
        self._not_recorded: str | None = None  # why calls are launched one by one
        self._context = context
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        taken = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self._inputs = tuple(self._spec(name) for name in taken)
        self._outputs = tuple(self._spec(name) for name in names if name not in taken)
        self._layouts = {n: layouts.layout_of(engine.get_tensor_format(n).name, n) for n in names}
        self._memory: dict[str, tuple[int, int]] = {}  # name -> pointer, bytes
        self._graphs: dict[tuple[tuple[int, ...], ...], int] = {}  # input shapes -> executable
        self._grown = output_allocator(trt, cuda)
        self._growing: frozenset[str] = frozenset()  # outputs of the shapes bound that the run itself sizes

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` must be fed."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""
        return self._outputs

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Compute every output for one batch. Raises: BadInput where the feeds do not fit."""
        self._bind(feeds)
        self._enqueue()
        self._cuda.synchronize()  # what sizes itself has its size now
        results = {spec.name: self._host_array(spec) for spec in self._outputs}
        self._download(results)
        self._cuda.synchronize()
        return {name: self._unpacked(name, array) for name, array in results.items()}

    def time(self, feeds: Arrays, calls: int) -> FloatArray:
        """Time each call in ms on the device, shape (calls,): they are queued, and nothing is copied."""
        self._bind(feeds)
        self._cuda.synchronize()
        return np.array(self._cuda.gaps_ms(self._launcher(feeds), calls))

    def cost(self, feeds: Arrays, calls: int) -> CallCost:
        """Return what a call costs around its kernels, and what each layer takes."""
        end_to_end = end_to_end_ms(self.run, feeds, calls)
        uploads = self._bind(feeds)
        launch = self._launcher(feeds)
        launch()
        self._cuda.synchronize()
        results = {spec.name: self._host_array(spec) for spec in self._outputs}
        layers, notes = self._layers(feeds, calls)
        recorded = not self._growing and self._cuda_graph is not False and self._not_recorded is None
        return CallCost(
            end_to_end_ms=end_to_end,
            enqueue_ms=timing.launch_ms(self._cuda, launch, calls),
            h2d_ms=timing.copy_ms(self._cuda, lambda: self._upload(uploads), calls),
            d2h_ms=timing.copy_ms(self._cuda, lambda: self._download(results), calls),
            layers=layers,
            cuda_graph=recorded,
            notes=(*([self._not_recorded] if self._not_recorded else []), *notes),
        )

    def queue(self, feeds: Arrays) -> TrtQueue:
        """Bind `feeds` for calls that are launched without waiting."""
        self._bind(feeds)
        launch = self._launcher(feeds)
        launch()
        self._cuda.synchronize()
        return TrtQueue(launch, self._cuda.synchronize)

    def close(self) -> None:
        """Destroy recorded graphs and the context, before the memory that they use is given back."""
        with contextlib.suppress(
            DeviceFailed
        ):  # after an error of the device, which was said, all calls fail
            self._drop_graphs()
        self._context = None

    def _upload(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            self._cuda.upload(array, self._memory[name][0])

    def _download(self, results: Arrays) -> None:
        for name, array in results.items():
            grown = name in self._growing
            self._cuda.download(self._grown.pointer(name) if grown else self._memory[name][0], array)

    def _layers(self, feeds: Arrays, calls: int) -> tuple[timing.Layers, tuple[str, ...]]:
        """Return each layer's time in a context of its own, or why there is none."""
        if self._growing or self._engine.num_optimization_profiles > 1:
            return (), (
                "layers were not timed: the engine has several profiles, or sizes that depend on data",
            )
        try:
            context = loading.context(self._loaded, cuda_graph=False, kept=self._kept)
        except DeviceFailed as e:  # a second context takes memory, which may be full
            return (), (f"layers were not timed: {e.message}",)
        shapes = {spec.name: tuple(feeds[spec.name].shape) for spec in self._inputs}
        memory = {name: pointer for name, (pointer, _) in self._memory.items()}
        found = timing.layer_times(self._trt, context, self._cuda, shapes=shapes, memory=memory, calls=calls)
        return found, () if found else ("layers were not timed: the runtime reports none",)

    def _bind(self, feeds: Arrays) -> dict[str, Array]:
        """Upload the inputs and take memory for the outputs; return the inputs as they lie there."""
        arrays = checked(feeds, self._inputs)
        laid = {}
        self._choose_profile(arrays)
        for name, array in arrays.items():
            if not self._context.set_input_shape(name, tuple(array.shape)):
                raise BadInput(
                    f"input '{name}' of shape {shape_text(array.shape)} is outside the engine's range, "
                    f"{self._range(name)}",
                    hint="use another batch, or build with --min-shapes and --max-shapes",
                )
            layout = self._layouts[name]
            laid[name] = array if layout is None else layout.packed(array)
            self._pointer(name, laid[name].nbytes)
        self._upload(laid)
        self._growing = frozenset(s.name for s in self._outputs if min(self._shape(s.name), default=0) < 0)
        for spec in self._outputs:
            if spec.name not in self._growing:
                shape = self._laid(spec.name, self._shape(spec.name))
                self._pointer(spec.name, math.prod(shape) * spec.dtype.itemsize)
            elif not self._context.set_output_allocator(spec.name, self._grown):
                raise DeviceFailed(f"the engine takes no allocator for its output '{spec.name}'", hint=_AGAIN)
        return laid

    def _choose_profile(self, arrays: Arrays) -> None:
        """Make the first profile that the shapes fit the active one; where none does the engine refuses."""
        if self._engine.num_optimization_profiles < 2:  # noqa: PLR2004 - nothing to choose from
            return
        fitting = (
            k
            for k in range(self._engine.num_optimization_profiles)
            if all(self._fits(name, array.shape, k) for name, array in arrays.items())
        )
        chosen = next(fitting, self._context.active_optimization_profile)
        if chosen == self._context.active_optimization_profile:
            return
        self._cuda.synchronize()
        if not self._context.set_optimization_profile_async(chosen, int(self._cuda.stream)):
            raise DeviceFailed(f"the engine does not change to its profile {chosen}", hint=_AGAIN)

    def _fits(self, name: str, shape: tuple[int, ...], profile: int) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, profile)
        return all(a <= n <= b for a, n, b in zip(tuple(low), shape, tuple(high), strict=True))

    def _shape(self, name: str) -> tuple[int, ...]:
        """Return an output's shape for the inputs bound; below 0 what only the run knows."""
        return tuple(self._context.get_tensor_shape(name))

    def _laid(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        layout = self._layouts[name]
        return shape if layout is None else layout.shape(shape)

    def _host_array(self, spec: TensorSpec) -> Array:
        shape = self._grown.shapes[spec.name] if spec.name in self._growing else self._shape(spec.name)
        return np.empty(self._laid(spec.name, shape), spec.dtype)

    def _unpacked(self, name: str, array: Array) -> Array:
        layout = self._layouts[name]
        return array if layout is None else layout.unpacked(array, self._shape(name)[1])

    def _pointer(self, name: str, size_bytes: int) -> int:
        pointer, capacity = self._memory.get(name, (0, 0))
        if capacity < size_bytes:
            self._drop_graphs()
            if capacity:
                self._cuda.synchronize()
                self._cuda.give(pointer)
            pointer = self._cuda.take(size_bytes)
            self._memory[name] = (pointer, size_bytes)
        if not self._context.set_tensor_address(name, pointer):
            raise DeviceFailed(f"the engine takes no memory for '{name}'", hint=_AGAIN)
        return pointer

    def _drop_graphs(self) -> None:
        """Recorded graphs hold addresses: drop them before memory moves."""
        if not self._graphs:
            return
        self._cuda.synchronize()
        for executable in self._graphs.values():
            self._cuda.call("cudaGraphExecDestroy", executable)
        self._graphs.clear()

    def _launcher(self, feeds: Arrays) -> Any:  # noqa: ANN401  (a callable without arguments)
        asked = self._cuda_graph is not False and not self._records_itself
        if not asked or self._growing or self._not_recorded:  # a recording has fixed sizes
            return self._enqueue
        key = tuple(tuple(feeds[spec.name].shape) for spec in self._inputs)
        if key not in self._graphs:
            self._enqueue()  # what is lazy happens now and not while recording
            self._cuda.synchronize()
            try:
                self._graphs[key] = self._cuda.capture(self._enqueue)
            except DeviceFailed as e:
                if self._cuda_graph:
                    raise
                self._not_recorded = (
                    f"calls are launched one by one, for no CUDA graph can be made: {e.message}"
                )
                return self._enqueue
        return lambda: self._cuda.call("cudaGraphLaunch", self._graphs[key], self._cuda.stream)

    def _enqueue(self) -> None:
        done = self._context.execute_async_v3(int(self._cuda.stream))
        if self._grown.refused is not None:
            raise self._grown.refused
        if not done:
            raise DeviceFailed(
                f"the engine does not run on this device: {self._loaded.log.reason()}", hint=_AGAIN
            )

    def _spec(self, name: str) -> TensorSpec:
        dims = tuple(None if d < 0 else int(d) for d in self._engine.get_tensor_shape(name))
        try:
            dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        except TypeError as e:
            raise BadArtifact(
                f"'{name}' has an element type that numpy lacks", hint="build it with FP32 inputs and outputs"
            ) from e
        if self._engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
            raise BadArtifact(
                f"'{name}' is a shape that lies in host memory, which is not fed here",
                hint="export the network with that shape as a constant",
            )
        return TensorSpec(name, dtype, dims)

    def _range(self, name: str) -> str:
        ranges = []
        for profile in range(self._engine.num_optimization_profiles):
            low, _, high = self._engine.get_tensor_profile_shape(name, profile)
            ranges.append(f"{shape_text(tuple(low))} to {shape_text(tuple(high))}")
        return " or ".join(ranges)


def _read(path: Path, runtime: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as e:
        raise BadArtifact(f"'{path}' cannot be read: {e.strerror}", hint="name an engine") from e
    flavour = FLAVOURS[runtime]
    if not data or not data.startswith(flavour.magic):
        raise BadArtifact(
            f"'{path}' is no {flavour.title} engine", hint="build one with `se-deploy build-engine`"
        )
    return data
