"""TensorRT and TensorRT-RTX engines on the device: one class, given the imported module.

Device memory is taken once and kept, so that timed calls copy nothing. TensorRT-RTX compiles its kernels when
the context is made; EAGER makes it finish before the first call, so that no fallback kernel is timed.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from se_deploy.backends.sessions import checked, shape_text
from se_deploy.backends.tensorrt.cuda import Cuda
from se_deploy.backends.tensorrt.flavours import FLAVOURS, TENSORRT_RTX
from se_deploy.errors import BadArtifact, BadInput, MissingRuntime
from se_deploy.protocols import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from se_deploy.protocols import Array, Arrays, FloatArray


@dataclass(frozen=True, slots=True)
class TrtRuntime:
    """Opens engines (protocols.Runtime)."""

    name: str = TENSORRT_RTX.name
    cuda_graph: bool = False  # record each shape's launches once and replay them

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
        driver, a device or the module.
        """
        if not isinstance(artifact, Path):
            raise BadArtifact("a graph is no engine", hint="build one with `se-deploy build-engine`")
        data = _read(artifact, self.name)
        cuda = Cuda()
        try:
            trt = _module(self.name)
            session = TrtSession(trt, _load(trt, artifact, data), cuda, cuda_graph=self.cuda_graph)
            try:
                yield session
            finally:
                session.close()
        finally:
            cuda.close()


class TrtSession:
    """A loaded engine (protocols.Session)."""

    def __init__(self, trt: Any, engine: Any, cuda: Cuda, *, cuda_graph: bool = False) -> None:  # noqa: ANN401
        """`trt`: the module; `engine`: deserialized on the device of `cuda`."""
        self._trt = trt
        self._engine = engine
        self._cuda = cuda
        self._own_graphs = cuda_graph and not hasattr(trt, "CudaGraphStrategy")
        self._context = _context(trt, engine, cuda_graph=cuda_graph)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        taken = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self._inputs = tuple(self._spec(name) for name in taken)
        self._outputs = tuple(self._spec(name) for name in names if name not in taken)
        self._memory: dict[str, tuple[int, int]] = {}  # name -> pointer, bytes
        self._graphs: dict[tuple[tuple[int, ...], ...], int] = {}  # input shapes -> executable

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
        results = self._bind(feeds)
        self._enqueue()
        for name, array in results.items():
            self._cuda.download(self._memory[name][0], array)
        self._cuda.synchronize()
        return results

    def time(self, feeds: Arrays, calls: int) -> FloatArray:
        """Time each call in ms between two events on the device, shape (calls,); nothing is copied."""
        self._bind(feeds)
        self._cuda.synchronize()
        launch = self._launcher(feeds)
        return np.array([self._cuda.elapsed_ms(launch) for _ in range(calls)])

    def close(self) -> None:
        """Destroy recorded graphs and the context, before the memory that they use is given back."""
        self._drop_graphs()
        self._context = None

    def _bind(self, feeds: Arrays) -> dict[str, Array]:
        """Upload the inputs and give empty host arrays for the outputs; both have their device memory."""
        arrays = checked(feeds, self._inputs)
        for name, array in arrays.items():
            if not self._context.set_input_shape(name, tuple(array.shape)):
                raise BadInput(
                    f"input '{name}' of shape {shape_text(array.shape)} is outside the engine's range, "
                    f"{self._range(name)}",
                    hint="use another batch, or build with --min-shapes and --max-shapes",
                )
            self._cuda.upload(array, self._pointer(name, array.nbytes))
        results = {}
        for spec in self._outputs:
            shape = tuple(self._context.get_tensor_shape(spec.name))
            results[spec.name] = np.empty(shape, spec.dtype)
            self._pointer(spec.name, math.prod(shape) * spec.dtype.itemsize)
        return results

    def _pointer(self, name: str, size_bytes: int) -> int:
        pointer, capacity = self._memory.get(name, (0, 0))
        if capacity < size_bytes:
            self._drop_graphs()
            if capacity:
                self._cuda.synchronize()
                self._cuda.give(pointer)
            pointer = self._cuda.take(size_bytes)
            self._memory[name] = (pointer, size_bytes)
        self._context.set_tensor_address(name, pointer)
        return pointer

    def _drop_graphs(self) -> None:
        """Recorded graphs hold addresses: drop them before memory moves."""
        self._cuda.synchronize()
        for executable in self._graphs.values():
            self._cuda.call("cudaGraphExecDestroy", executable)
        self._graphs.clear()

    def _launcher(self, feeds: Arrays) -> Any:  # noqa: ANN401  (a callable without arguments)
        if not self._own_graphs:
            return self._enqueue
        key = tuple(tuple(feeds[spec.name].shape) for spec in self._inputs)
        if key not in self._graphs:
            self._enqueue()  # what is lazy happens now and not while recording
            self._cuda.synchronize()
            self._graphs[key] = self._cuda.capture(self._enqueue)
        return lambda: self._cuda.call("cudaGraphLaunch", self._graphs[key], self._cuda.stream)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._cuda.stream)):
            raise BadArtifact("the engine does not run on this device", hint="build it again on this device")

    def _spec(self, name: str) -> TensorSpec:
        dims = tuple(None if d < 0 else int(d) for d in self._engine.get_tensor_shape(name))
        try:
            dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        except TypeError as e:
            raise BadArtifact(
                f"'{name}' has an element type that numpy lacks", hint="build it with FP32 inputs and outputs"
            ) from e
        return TensorSpec(name, dtype, dims)

    def _range(self, name: str) -> str:
        low, _, high = self._engine.get_tensor_profile_shape(name, 0)
        return f"{shape_text(tuple(low))} to {shape_text(tuple(high))}"


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


def _module(runtime: str) -> Any:  # noqa: ANN401  (the modules are untyped)
    flavour = FLAVOURS[runtime]
    try:
        return importlib.import_module(flavour.module)
    except (ImportError, OSError) as e:
        raise MissingRuntime(flavour.absent(str(e)), hint=flavour.hint) from e


def _load(trt: Any, path: Path, data: bytes) -> Any:  # noqa: ANN401
    log = _logger(trt)
    engine = trt.Runtime(log).deserialize_cuda_engine(data)
    if engine is None:
        reason = "; ".join(log.errors[:2]) or "it gives no reason"
        raise BadArtifact(
            f"'{path}' cannot be loaded by {trt.__name__} {trt.__version__} on this device: {reason}",
            hint="build the engine again with this version, for this device",
        )
    return engine


def _context(trt: Any, engine: Any, *, cuda_graph: bool) -> Any:  # noqa: ANN401
    """Make an execution context; on TensorRT-RTX this compiles its kernels."""
    if hasattr(trt, "CudaGraphStrategy"):
        config = engine.create_runtime_config()
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        if cuda_graph:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = engine.create_execution_context(config)
    else:
        context = engine.create_execution_context()
    if context is None:
        raise MissingRuntime("the device has no memory for the engine", hint="free memory on the device")
    return context


def _logger(trt: Any) -> Any:  # noqa: ANN401
    """Make a logger of the module's own class that keeps what went wrong."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the base comes from the module given
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()
