"""ONNX Runtime: the default for running graphs, on the CPU or on what else it has.

It falls back to its CPU provider without an exception; here that is an error, and single nodes that it left
to the CPU are listed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from se_deploy import extras, graph, locks
from se_deploy.backends.onnxruntime.planner import FATAL_ONLY, REFUSALS, plan
from se_deploy.backends.sessions import checked, end_to_end_ms, shape_text, wall_times
from se_deploy.errors import BadArtifact, BadInput, MissingRuntime
from se_deploy.protocols import CallCost, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from se_deploy.protocols import Array, Arrays, FloatArray

__all__ = ["CPU", "CUDA", "TENSORRT", "OrtRuntime", "OrtSession", "plan"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

_DEFAULT_LEVEL = 2
_LARGE = 32 << 20  # bytes of weights
_LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
_DTYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OrtRuntime:
    """Opens ONNX files and models (protocols.Runtime)."""

    threads: int = 0  # within one operator; 0 lets ONNX Runtime take every core
    optimize: bool = True  # False runs the graph node by node, as it stands: the reference semantics
    lean: bool = False  # frees every tensor as soon as it can: for many outputs and for runs side by side
    provider: str = CPU

    @property
    def name(self) -> str:
        """The runtime's name in reports."""
        return "onnxruntime"

    @property
    def version(self) -> str:
        """The version of ONNX Runtime."""
        return str(ort.__version__)

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or "cuda"."""
        return "cpu" if self.provider == CPU else "cuda"

    @contextlib.contextmanager
    def open(self, artifact: Path | ir.Model) -> Iterator[OrtSession]:
        """Load a file or a model.

        Raises: MissingRuntime where the provider cannot run here; BadArtifact where the graph is refused.
        """
        yield OrtSession(self._load(artifact), self.device)

    def _load(self, artifact: Path | ir.Model) -> ort.InferenceSession:
        if self.provider not in ort.get_available_providers():
            raise MissingRuntime(
                f"this ONNX Runtime has no {self.provider}",
                hint=f"pip uninstall -y onnxruntime, then {extras.install('gpu')}",
            )
        if self.provider != CPU:
            _load_cuda_libraries()
        try:
            with _source(artifact) as source, _quiet():
                session = ort.InferenceSession(source, self._options(), providers=[self.provider])
        except REFUSALS as e:
            what = f"'{artifact}'" if isinstance(artifact, Path) else "the graph"
            raise BadArtifact(
                f"ONNX Runtime {ort.__version__} cannot load {what}: {_first_line(e)}",
                hint="export it again with `se-deploy export`",
            ) from e
        if session.get_providers()[0] != self.provider:
            raise MissingRuntime(
                f"{self.provider} does not start on this machine{_missing_library(self.provider)}, "
                f"ONNX Runtime fell back to {session.get_providers()[0]}",
                hint=f"without an NVIDIA driver run on the CPU; {_LIBRARIES} brings CUDA's own libraries; "
                "`se-deploy doctor` says what this machine has",
            )
        return session

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        options.intra_op_num_threads = self.threads
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if not self.optimize:
            # Such a session is run in turn with PyTorch's: threads that spin would starve the other's.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.lean:
            # By default what only feeds an output waits for the end, and each run reserves a whole plan.
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
            options.enable_mem_pattern = False
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if self.optimize else level.ORT_DISABLE_ALL
        return options


class OrtSession:
    """A loaded ONNX graph (protocols.Session)."""

    def __init__(self, session: ort.InferenceSession, device: str) -> None:
        """`device`: where time() keeps its arrays, "cpu" or "cuda"."""
        self._session = session
        self._device = device
        self._inputs = tuple(_spec(arg) for arg in session.get_inputs())
        self._outputs = tuple(_spec(arg) for arg in session.get_outputs())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` must be fed."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""
        return self._outputs

    @property
    def on_cpu(self) -> tuple[str, ...]:
        """Names of the nodes that the provider asked for left to the CPU; () on the CPU itself."""
        if self._device == "cpu":
            return ()
        parts = self._session.get_provider_graph_assignment_info()
        return tuple(node.name for part in parts if part.ep_name == CPU for node in part.get_nodes())

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Compute every output for one batch. Raises: BadInput where the feeds do not fit or a node fails."""
        given = checked(feeds, self._inputs)
        try:
            outputs = self._session.run(None, given)
        except REFUSALS as e:
            raise _failed(e, given) from e
        return {spec.name: array for spec, array in zip(self._outputs, outputs, strict=True)}

    def time(self, feeds: Arrays, calls: int) -> FloatArray:
        """Time each call in ms, shape (calls,): inputs and outputs stay where the provider computes.

        Raises: BadInput as `run` does.
        """
        given = checked(feeds, self._inputs)
        binding = self._session.io_binding()
        for name, array in given.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, self._device, 0))
        for spec in self._outputs:
            binding.bind_output(spec.name, self._device)

        def call() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        try:
            return wall_times(call, calls)
        except (*REFUSALS, RuntimeError) as e:  # a bound run raises no more than a RuntimeError
            raise _failed(e, given) from e

    def cost(self, feeds: Arrays, calls: int) -> CallCost:
        """Return what ONNX Runtime can tell of a call: its time from host arrays to host arrays."""
        recorded = None if self._device == "cpu" else False
        return CallCost(end_to_end_ms=end_to_end_ms(self.run, feeds, calls), cuda_graph=recorded)


@functools.cache
def _load_cuda_libraries() -> None:
    """Load cuBLAS, cuDNN and the others from NVIDIA's wheels, which no loader's path has.

    PyTorch brings the same wheels and loads them itself; a command that does not import it would find none.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it does not find is told by the session that does not start
        ort.preload_dlls()


def _missing_library(provider: str) -> str:
    """Return which library keeps a provider from starting, behind a colon; "" where all of them load."""
    name = f"libonnxruntime_providers_{provider.removesuffix('ExecutionProvider').lower()}.so"
    path = Path(ort.__file__).parent / "capi" / name
    if not path.is_file():  # Windows, or a build that has it inside
        return ""
    try:
        ctypes.CDLL(str(path))
    except OSError as e:
        # Any other complaint is about symbols that ONNX Runtime itself brings.
        return f": {e}" if "cannot open shared object" in str(e) else ""
    return ""


@contextlib.contextmanager
def _source(artifact: Path | ir.Model) -> Iterator[str | bytes]:
    """Yield what ONNX Runtime loads: a path, or a model's bytes."""
    if isinstance(artifact, Path):
        yield str(artifact)
    elif graph.weight_bytes(artifact) < _LARGE:
        yield graph.to_bytes(artifact)
    else:  # a protobuf would hold the weights twice more while it is written
        with locks.scratch() as folder:
            path = Path(folder) / "model.onnx"
            ir.save(artifact, path, external_data="weights")
            yield str(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep a provider that does not start from telling the terminal: the caller raises what it would say."""
    ort.set_default_logger_severity(FATAL_ONLY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        ort.set_default_logger_severity(_DEFAULT_LEVEL)


def _spec(arg: Any) -> TensorSpec:  # noqa: ANN401  (onnxruntime's NodeArg is untyped)
    if not arg.type.startswith("tensor("):
        raise BadArtifact(
            f"'{arg.name}' is a {arg.type}: only tensors can be compared and timed",
            hint="`se-deploy export --no-verify` writes the graph; or join a sequence into a tensor",
        )
    if arg.type not in _DTYPES:
        raise BadArtifact(f"'{arg.name}' has element type {arg.type}", hint="export it with float inputs")
    dims = tuple(d if isinstance(d, int) else None for d in arg.shape)
    return TensorSpec(arg.name, np.dtype(_DTYPES[arg.type]), dims)


_WHERE_IN_ITS_SOURCE = re.compile(
    r"^\S*\.(?:cc|h):\d+ (?:\S*::.*?\)|\S+) |^\[ONNXRuntimeError\] : \d+ : \w+ : "
)
"""What ONNX Runtime writes before the reason: a file and line with the function, or its own code."""


def _failed(error: Exception, feeds: Arrays) -> BadInput:
    """Return which node failed on which shapes, without ONNX Runtime's own codes and source files."""
    text = " ".join(str(error).split())
    node = re.search(r"while running (\S+) node\. Name:'([^']*)'", text)
    reason = text.rpartition("Status Message: ")[2]
    reason = _WHERE_IN_ITS_SOURCE.sub("", reason)
    shapes = ", ".join(f"'{name}' {shape_text(array.shape)}" for name, array in feeds.items())
    where = f"node '{node[2]}' ({node[1]})" if node else "the graph"
    return BadInput(
        f"{where} cannot run on {shapes}: {reason}", hint="give data of a size that the network takes"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
