"""Stand-ins for what needs a GPU: a CUDA runtime whose device memory is host memory, and a TensorRT.

They keep the bindings' manners (errors are returned, builds give None, shapes are answered by bool), so that
the code between can be followed on any machine. What they compute is y = 2 x for x (N, 3).
"""

from __future__ import annotations

import ctypes
import enum
import json
import types

import numpy as np


class Error(enum.Enum):
    cudaSuccess = 0  # noqa: N815  (the bindings' own names)
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815


class Cudart:
    """cuda.bindings.runtime with one device, or none."""

    cudaError_t = Error  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = types.SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice="h2d", cudaMemcpyDeviceToHost="d2h"
    )
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=0)  # noqa: N815

    def __init__(self, *, count=1, error=Error.cudaSuccess, memory=1 << 30, driver=13050):
        self.count, self.error, self.memory, self.driver = count, error, memory, driver
        self.taken = {}
        self.graphs = {}
        self.recording = None
        self.launches = []

    def __getattr__(self, name):
        if not name.startswith("cuda"):
            raise AttributeError(name)
        return lambda *_: (Error.cudaSuccess,)

    def cudaGetDeviceCount(self):  # noqa: N802
        return self.error, self.count

    def cudaDriverGetVersion(self):  # noqa: N802
        return Error.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self):  # noqa: N802
        return Error.cudaSuccess, 13050

    def cudaGetDeviceProperties(self, _):  # noqa: N802
        return Error.cudaSuccess, types.SimpleNamespace(name=b"Fake GPU\0\0")

    def cudaStreamCreateWithFlags(self, _):  # noqa: N802
        return Error.cudaSuccess, 7

    def cudaEventCreate(self):  # noqa: N802
        return Error.cudaSuccess, object()

    def cudaEventElapsedTime(self, *_):  # noqa: N802
        return Error.cudaSuccess, 1.5

    def cudaMalloc(self, size):  # noqa: N802
        if size > self.memory:
            return Error.cudaErrorMemoryAllocation, None
        buffer = ctypes.create_string_buffer(size)
        self.taken[ctypes.addressof(buffer)] = buffer
        return Error.cudaSuccess, ctypes.addressof(buffer)

    def cudaFree(self, pointer):  # noqa: N802
        del self.taken[pointer]
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(self, target, source, size, *_):  # noqa: N802
        ctypes.memmove(target, source, size)
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, *_):  # noqa: N802
        self.recording = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, _):  # noqa: N802
        recorded, self.recording = self.recording, None
        self.graphs[len(self.graphs) + 1] = recorded
        return Error.cudaSuccess, len(self.graphs)

    def cudaGraphInstantiate(self, graph, _):  # noqa: N802
        return Error.cudaSuccess, graph

    def cudaGraphLaunch(self, graph, _):  # noqa: N802
        for work in self.graphs[graph]:
            work()
        self.launches.append(graph)
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph):  # noqa: N802
        del self.graphs[graph]
        return (Error.cudaSuccess,)


class Doubler:
    """An engine and its context."""

    num_io_tensors = 2
    names = ("x", "y")

    def __init__(self, trt, cudart):
        self.trt, self.cudart = trt, cudart
        self.shape, self.address = None, {}
        self.enqueued = 0

    def get_tensor_name(self, i):
        return self.names[i]

    def get_tensor_mode(self, name):
        return self.trt.TensorIOMode.INPUT if name == "x" else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, _):
        return "FLOAT"

    def get_tensor_shape(self, _):
        return (-1, 3) if self.shape is None else self.shape

    def get_tensor_profile_shape(self, *_):
        return (1, 3), (1, 3), (4, 3)

    def create_execution_context(self, *config):
        self.config = config
        context = Doubler(self.trt, self.cudart)
        self.trt.contexts.append(context)
        return context

    def create_runtime_config(self):
        return types.SimpleNamespace()

    def set_input_shape(self, _, shape):
        fits = 1 <= shape[0] <= 4
        self.shape = shape if fits else self.shape
        return fits

    def set_tensor_address(self, name, pointer):
        self.address[name] = pointer

    def execute_async_v3(self, stream):
        assert stream == 7
        shape, x, y = self.shape, self.address["x"], self.address["y"]

        def work():
            assert {x, y} <= set(self.cudart.taken), "the graph runs on memory that was given back"
            size = int(np.prod(shape))
            source = np.ctypeslib.as_array((ctypes.c_float * size).from_address(x))
            np.ctypeslib.as_array((ctypes.c_float * size).from_address(y))[:] = 2 * source

        self.enqueued += 1
        if self.cudart.recording is None:
            work()
        else:
            self.cudart.recording.append(work)
        return True


class Logger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


def tensorrt(version="10.13.3", *, rtx=False, cudart=None, loads=True, builds=True):
    """A module such as `import tensorrt` gives; TensorRT-RTX with `rtx`."""
    trt = types.ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    trt.__version__ = version
    trt.ILogger = Logger
    trt.TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
    trt.nptype = lambda word: {"FLOAT": np.float32}[word]
    trt.contexts = []
    if rtx:
        trt.CudaGraphStrategy = enum.Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
        trt.DynamicShapesKernelSpecializationStrategy = enum.Enum("Strategy", "LAZY EAGER NONE")

    class Runtime:
        def __init__(self, log):
            self.log = log

        def deserialize_cuda_engine(self, data):
            if not loads or bytes(data).endswith(b"stale"):
                self.log.log(Logger.ERROR, "Version tag does not match")
                return None
            return Inspected(trt, cudart)

    trt.Runtime = Runtime
    _add_builder(trt, builds=builds)
    return trt


LAYERS = {"Layers": [{"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [], "Outputs": []}]}


class Inspected(Doubler):
    def create_engine_inspector(self):
        return types.SimpleNamespace(get_engine_information=lambda _: json.dumps(LAYERS))


def _add_builder(trt, *, builds):
    flags = {"STRONGLY_TYPED": 0 if trt.__version__.startswith("11") else 1}
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", flags)
    trt.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
    trt.MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
    trt.LayerInformationFormat = enum.Enum("LayerInformationFormat", "JSON")
    trt.seen = types.SimpleNamespace(flag=None, cache=None, workspace=None, shapes={})

    class Config:
        def set_memory_pool_limit(self, _, size):
            trt.seen.workspace = size

        def create_timing_cache(self, known):
            trt.seen.cache = known
            return known

        def set_timing_cache(self, cache, *, ignore_mismatch):
            self.cache = cache
            assert not ignore_mismatch

        def get_timing_cache(self):
            return types.SimpleNamespace(serialize=lambda: self.cache + b"+tactic")

        def add_optimization_profile(self, profile):
            return profile.index

    class Profile:
        index = 0

        def set_shape(self, name, *shapes):
            trt.seen.shapes[name] = shapes
            self.index = -1 if shapes[0] > shapes[2] else 0

    class Builder:
        def __init__(self, log):
            if builds == "no device":
                log.log(Logger.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self.log = log

        def create_network(self, flag):
            trt.seen.flag = flag
            tensor = types.SimpleNamespace(name="x", shape=(-1, 3))
            return types.SimpleNamespace(num_inputs=1, get_input=lambda _: tensor)

        create_builder_config = staticmethod(Config)
        create_optimization_profile = staticmethod(Profile)

        def build_serialized_network(self, *_):
            self.log.log(Logger.WARNING, "a warning")
            self.log.log(Logger.WARNING, "a warning")
            self.log.log(Logger.VERBOSE, "Skipping tactic 0x1 due to insufficient memory")
            self.log.log(Logger.INTERNAL_ERROR, "Thread context has not been set!")
            if not builds:
                self.log.log(Logger.ERROR, "no tactics for node conv")
                return None
            return b"an engine"

    class OnnxParser:
        num_errors = 1

        def __init__(self, *_):
            pass

        def parse_from_file(self, path):
            return not path.endswith("bad.onnx")

        def get_error(self, _):
            said = {"desc": "no importer", "node_name": "n_m", "node_operator": "Odd"}
            return types.SimpleNamespace(**{k: (lambda v=v: v) for k, v in said.items()})

    trt.Builder, trt.OnnxParser = Builder, OnnxParser
