"""Stand-ins for what needs a GPU: a CUDA runtime whose device memory is host memory, and a TensorRT.

They keep the bindings' manners (errors are returned, builds give None, shapes are answered by bool), so that
the code between can be followed on any machine. What they compute is y = 2 x for x (N, 3).
"""

# ruff: noqa: ARG002, ARG005 - the bindings' own parameters, by their own names
from __future__ import annotations

import ctypes
import enum
import json
import types
import weakref
from pathlib import Path

import numpy as np


class Error(enum.Enum):
    cudaSuccess = 0  # noqa: N815  (the bindings' own names)
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815


class Cudart:
    """cuda.bindings.runtime with one device, or none."""

    cudaError_t = Error  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = types.SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice="h2d", cudaMemcpyDeviceToHost="d2h"
    )
    cudaDeviceAttr = types.SimpleNamespace(  # noqa: N815
        cudaDevAttrComputeCapabilityMajor=75,
        cudaDevAttrComputeCapabilityMinor=76,
        cudaDevAttrMemoryClockRate=36,
        cudaDevAttrGlobalMemoryBusWidth=37,
    )
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=0)  # noqa: N815

    def __init__(self, *, count=1, error=Error.cudaSuccess, memory=1 << 30, driver=13050):
        self.count, self.error, self.memory, self.driver = count, error, memory, driver
        self.taken = {}
        self.graphs = {}
        self.recording = None
        self.launches = []
        self.attributes = {75: 9, 76: 0, 36: 2_619_000, 37: 5120}  # an H100's

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

    def cudaDeviceGetAttribute(self, kind, _):  # noqa: N802
        if kind not in self.attributes:
            return Error.cudaErrorIllegalAddress, None
        return Error.cudaSuccess, self.attributes[kind]

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
        assert self.recording is not None, "nothing is being recorded"
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


RECORDED = Path(__file__).parent / "fixtures" / "bindings"
"""What the real bindings have: scripts/record_bindings.py."""


def recorded(version, *, rtx=False):
    """What the bindings of the release that `version` belongs to have."""
    name = "rtx-1.7" if rtx else ".".join(version.split(".")[:2])
    return json.loads((RECORDED / f"{name}.json").read_text("utf-8"))


def held(cls, members):
    """Return `cls` with the public members that the real class has and no other, to read or to set."""

    def assign(self, name, value):
        if not name.startswith("_") and name not in members:
            raise AttributeError(f"{cls.__name__} of these bindings has no '{name}'")
        object.__setattr__(self, name, value)

    kept = {name: value for name, value in vars(cls).items() if name.startswith("_") or name in members}
    kept.pop("__dict__", None)
    kept.pop("__weakref__", None)
    return type(cls.__name__, cls.__bases__, kept | {"__setattr__": assign})


class ICudaEngine:
    """y = 2 x; its ranges, and whether y's size is known beforehand, are the module's."""

    num_io_tensors = 2
    weight_streaming_budget_v2 = None

    def __init__(self, trt, cudart):
        self._trt, self._cudart = trt, cudart
        self.num_optimization_profiles = len(trt._profiles)
        trt.engines.append(self)

    @property
    def refittable(self):
        return self._trt._stripped

    @property
    def streamable_weights_size(self):
        return self._trt._streamable

    def get_weight_streaming_automatic_budget(self):
        return 77

    def get_tensor_name(self, index):
        return ("x", "y")[index]

    def get_tensor_mode(self, name):
        return self._trt.TensorIOMode.INPUT if name == "x" else self._trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self._trt.DataType.FLOAT

    def get_tensor_location(self, name):
        return self._trt.TensorLocation.DEVICE

    def get_tensor_format(self, name):
        return self._trt.TensorFormat[self._trt._format]

    def get_tensor_shape(self, name):
        return (-1, 3)

    def get_tensor_profile_shape(self, name, profile_index):
        return self._trt._profiles[profile_index]

    def create_execution_context(self, strategy=None, runtime_config=None):
        if self._trt._full:
            return None
        self._trt.configs.append(runtime_config or strategy)  # two overloads of one parameter
        context = self._trt.IExecutionContext(self._trt, self._cudart)
        self._trt.contexts.append(context)
        return context

    def create_runtime_config(self):
        return self._trt.IRuntimeConfig()

    def create_engine_inspector(self):
        return types.SimpleNamespace(get_engine_information=lambda _: json.dumps(LAYERS))


class IExecutionContext:
    profiler = None

    def __init__(self, trt, cudart):
        self._trt, self._cudart = trt, cudart
        self._shape, self._address, self._allocator = None, {}, None
        self._profile, self._enqueued = 0, 0

    @property
    def active_optimization_profile(self):
        return self._profile

    def set_optimization_profile_async(self, profile_index, stream_handle):
        self._profile = profile_index
        return True

    def set_input_shape(self, name, shape):
        low, _, high = self._trt._profiles[self._profile]
        fits = low[0] <= shape[0] <= high[0]
        self._shape = shape if fits else self._shape
        return fits

    def get_tensor_shape(self, name):
        return (-1, 3) if name == "y" and self._trt._grows else self._shape

    def set_tensor_address(self, name, memory):
        self._address[name] = memory
        return not self._trt._deaf

    def set_output_allocator(self, name, output_allocator):
        self._allocator = output_allocator
        return True

    def execute_async_v3(self, stream_handle):
        assert stream_handle == 7
        self._enqueued += 1
        if self._trt._breaks:
            return False
        if self.profiler is not None:
            for name, ms in (("conv", 0.25), ("fc", 0.75)):
                self.profiler.report_layer_time(name, ms)
        shape = self._shape
        if self._trt._format != "LINEAR":
            shape = (shape[0], *shape[2:], shape[1])  # x (N, 3): channels are last already
        if self._trt._grows:
            pointer = self._allocator.reallocate_output("y", 0, int(np.prod(shape)) * 4, 256)
            if not pointer:
                return False
            self._allocator.notify_shape("y", shape)
            self._address["y"] = pointer
        x, y = self._address["x"], self._address["y"]

        def work():
            assert {x, y} <= set(self._cudart.taken), "the graph runs on memory that was given back"
            size = int(np.prod(shape))
            source = np.ctypeslib.as_array((ctypes.c_float * size).from_address(x))
            np.ctypeslib.as_array((ctypes.c_float * size).from_address(y))[:] = 2 * source

        if self._cudart.recording is None:
            work()
        else:
            self._cudart.recording.append(work)
        return True


class IRuntimeCache:
    def __init__(self):
        self._known = b""

    def deserialize(self, blob):
        self._known = bytes(blob) if bytes(blob).startswith(b"kernels") else b""
        return bool(self._known)

    def serialize(self):
        return self._known or b"kernels"


class IRuntimeConfig:
    def create_runtime_cache(self):
        return IRuntimeCache()

    def set_runtime_cache(self, cache):
        self._cache = cache
        return True


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


INHERITED = {
    "ILogger": ILogger,
    **{name: type(name, (), {}) for name in ("IOutputAllocator", "IProgressMonitor", "IProfiler")},
}
"""Classes that the caller inherits from."""


def tensorrt(version="10.13.3", *, rtx=False, cudart=None, loads=True, builds=True, starts=True, **engine_is):
    """A module such as `import tensorrt` gives; TensorRT-RTX with `rtx`.

    It has what the real bindings of that release have, and nothing that they lack. `engine_is`: grows (its
    output's size is known after the run only), deaf (it takes no memory), breaks (it does not run), full (it
    gets no context), stripped, streamable, and its profiles.
    """
    has = recorded(version, rtx=rtx)
    trt = types.ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    trt.__version__ = version
    for name, members in has["enums"].items():
        setattr(trt, name, enum.IntEnum(name, members))
    trt.contexts, trt.configs, trt.libraries, trt.refitted = [], [], [], []
    trt.engines, trt.runtimes = [], []
    for name in ("grows", "deaf", "breaks", "full", "stripped"):
        setattr(trt, f"_{name}", engine_is.pop(name, False))
    trt._streamable = engine_is.pop("streamable", 0)
    trt._format = engine_is.pop("form", "LINEAR")
    trt._profiles = engine_is.pop("profiles", [((1, 3), (1, 3), (4, 3))])
    assert not engine_is
    trt.seen = types.SimpleNamespace(flag=None, cache=None, workspace=None, profiles=[], config=None)
    classes = _classes(trt, cudart, loads=loads, builds=builds, starts=starts)
    for name, cls in classes.items():
        if name in has["names"]:
            setattr(trt, name, cls if name in INHERITED else held(cls, has["classes"].get(name, ())))
    trt.init_libnvinfer_plugins = lambda logger, namespace: True
    trt.get_plugin_registry = trt.IPluginRegistry
    trt.nptype = lambda trt_type: {trt.DataType.FLOAT: np.float32}[trt_type]
    return trt


LAYERS = {"Layers": [{"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [], "Outputs": []}]}


def _classes(trt, cudart, *, loads, builds, starts):
    class Runtime:
        DLA_core = 0
        engine_host_code_allowed = False

        def __init__(self, log):
            if not starts:
                log.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._log = log
            trt.runtimes.append(self)

        def deserialize_cuda_engine(self, serialized_engine):
            assert trt.seen.config is None or trt.seen.config() is None, "the builder is still there"
            if not loads or bytes(serialized_engine).endswith(b"stale"):
                self._log.log(ILogger.ERROR, "Version tag does not match")
                return None
            return trt.ICudaEngine(trt, cudart)

    class IPluginRegistry:
        def load_library(self, plugin_path):
            if not plugin_path.endswith(".so") or plugin_path in trt.libraries:
                return None
            trt.libraries.append(plugin_path)
            return object()

    class Refitter:
        def __init__(self, engine, log):
            pass

        def get_missing_weights(self):
            return ["w"] if trt._stripped and not trt.refitted else []

        def refit_cuda_engine(self):
            return True

    class OnnxParserRefitter:
        num_errors = 0

        def __init__(self, refitter, log):
            pass

        def refit_from_file(self, model):
            trt.refitted.append(model)
            return Path(model).is_file()

    return {
        **INHERITED, "ICudaEngine": ICudaEngine,
        "IExecutionContext": IExecutionContext, "IRuntimeConfig": IRuntimeConfig, "Runtime": Runtime,
        "IPluginRegistry": IPluginRegistry, "Refitter": Refitter, "OnnxParserRefitter": OnnxParserRefitter,
        **_building(trt, builds=builds),
    }  # fmt: skip


def _building(trt, *, builds):
    class IBuilderConfig:
        def __init__(self):
            self._cache = None
            self.flags = 1 << trt.BuilderFlag.TF32  # "enabled by default"
            trt.seen.config = weakref.ref(self)
            trt.seen.settings = vars(self)  # which outlives the configuration

        def set_flag(self, flag):
            self.flags |= 1 << flag

        def clear_flag(self, flag):
            self.flags &= ~(1 << flag)

        def set_memory_pool_limit(self, pool, pool_size):
            trt.seen.workspace = pool_size

        def create_timing_cache(self, serialized_timing_cache):
            if bytes(serialized_timing_cache) == b"junk":
                return None
            trt.seen.cache = bytes(serialized_timing_cache)
            return trt.seen.cache

        def set_timing_cache(self, cache, ignore_mismatch):
            assert not ignore_mismatch
            if builds == "no cache" or cache.startswith(b"of another device"):
                return False
            self._cache = cache
            return True

        def get_timing_cache(self):
            if self._cache is None:
                return None
            return types.SimpleNamespace(serialize=lambda: self._cache + b"+tactic")

        def add_optimization_profile(self, profile):
            return -1 if any(low > high for low, _, high in profile._shapes.values()) else 0

        def set_compute_capability(self, compute_capability, index):
            return True

    class IOptimizationProfile:
        def __init__(self):
            self._shapes = {}
            trt.seen.profiles.append(self._shapes)

        def set_shape(self, input, min, opt, max):  # noqa: A002 - the bindings' own names
            self._shapes[input] = (min, opt, max)

    class ITensor:
        def __init__(self, name):
            self.name, self.shape = name, (-1, 3)

    class INetworkDefinition:
        num_inputs = num_outputs = 1

        def __init__(self):
            trt.seen.tensors = {name: trt.ITensor(name) for name in "xy"}

        def get_input(self, index):
            return trt.seen.tensors["x"]

        def get_output(self, index):
            return trt.seen.tensors["y"]

    class Builder:
        num_DLA_cores = 2  # noqa: N815

        def __init__(self, log):
            if builds == "no device":
                log.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._log = log

        def create_network(self, flags):
            trt.seen.flag = flags
            return trt.INetworkDefinition()

        def create_builder_config(self):
            return trt.IBuilderConfig()

        def create_optimization_profile(self):
            return trt.IOptimizationProfile()

        def build_serialized_network(self, network, config):
            self._log.log(ILogger.WARNING, "a warning")
            self._log.log(ILogger.WARNING, "a warning")
            self._log.log(ILogger.VERBOSE, "Skipping tactic 0x1 due to insufficient memory")
            self._log.log(ILogger.INTERNAL_ERROR, "Thread context has not been set!")
            if not builds:
                self._log.log(ILogger.ERROR, "no tactics for node conv")
                return None
            return b"an engine"

    class OnnxParser:
        num_errors = 1

        def __init__(self, network, log):
            pass

        def parse_from_file(self, model):
            return not model.endswith("bad.onnx")

        def get_error(self, index):
            said = {"desc": "no importer", "node_name": "n_m", "node_operator": "Odd"}
            return types.SimpleNamespace(**{k: (lambda v=v: v) for k, v in said.items()})

    return {
        cls.__name__: cls
        for cls in (
            IBuilderConfig, IOptimizationProfile, ITensor, INetworkDefinition, Builder, OnnxParser,
        )
    }  # fmt: skip
