"""The process that holds a compiler, run as a script: one request a line on stdin, replies on stdout.

A compiler can be killed for memory or crash, and it writes to the terminal as it likes: here only a build is
lost, and nothing but replies reaches the caller. It imports nothing of this package, so that it starts in the
time that the compiler's own module takes.

    argv     the module: tensorrt or tensorrt_rtx; the process that started this one
    first    {"version", "targets", "strongly_typed", "device", "flags", "compatibility"} or {"missing"}
    request  {"onnx": path, "engine": path | null, "targets", "profiles": [{input: [min, opt, max]}],
             "workspace_bytes", "timing_cache", "flags", "optimization_level", "compatibility", "dla_core",
             "formats": {tensor: format}, "plugins": [path]}
    replies  {"progress": [step, done, total]} any number of times, then
             {"ok", "reason", "layers", "inspector", "warnings", "errors", "skipped_tactics", "seconds"}
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

_LAYER_LIST = ("Layers:", "Engine Layer Information")
_SPURIOUS = ("Thread context has not been set", "cudaError", "CUDA initialization", "Error Code 35")


_PR_SET_PDEATHSIG = 1  # of prctl(2)


def end_with(parent: int) -> None:
    """Let the system kill this process when its parent dies, whatever it is busy with; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        sys.exit(1)


def main() -> None:
    """Serve requests until stdin ends."""
    end_with(int(sys.argv[2]))
    here = str(Path(__file__).parent)
    sys.path[:] = [entry for entry in sys.path if entry != here]
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the compiler prints goes to stderr

    def send(reply: dict[str, Any]) -> None:
        replies.write(json.dumps(reply) + "\n")

    try:
        trt = importlib.import_module(sys.argv[1])
    except (ImportError, OSError) as e:
        send({"missing": str(e)})
        return
    worker = Builder(trt, send)
    send(worker.capabilities())
    for line in sys.stdin:
        send(worker.build(json.loads(line)))


class Refused(Exception):
    """A request that cannot be built, in words."""


class Builder:
    """Builds engines with one of the two TensorRT modules, which differ only in what they lack."""

    def __init__(self, trt: Any, send: Any) -> None:  # noqa: ANN401  (the modules are untyped)
        """`trt`: the imported module; `send`: takes one reply."""
        self.trt = trt
        self.send = send
        self.log = _logger(trt)
        self.libraries: set[str] = set()  # of plug-ins, that this process has loaded

    def capabilities(self) -> dict[str, Any]:
        """Return what this module is, by what it has, never by its version."""
        compute = getattr(self.trt, "ComputeCapability", None)
        targets = [] if compute is None else [m.lower() for m in compute.__members__ if m.startswith("SM")]
        return {
            "version": self.trt.__version__,
            "targets": targets,
            "strongly_typed": hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"),
            "device": _device() if compute is None else "",  # TensorRT-RTX needs none
            "flags": list(self.trt.BuilderFlag.__members__),
            "compatibility": list(self.trt.HardwareCompatibilityLevel.__members__),
        }

    def build(self, request: dict[str, Any]) -> dict[str, Any]:
        """Build one engine; a refusal is a reply, not an exception."""
        start = time.perf_counter()
        self.log.clear()
        try:
            serialized = self._serialized(request)
        except Refused as e:
            return {"ok": False, "reason": str(e), **self._messages()}
        inspected = None
        if not hasattr(self.trt, "ComputeCapability"):  # TensorRT-RTX loads none without a device
            inspected = self._inspect(
                memoryview(serialized), host_code="VERSION_COMPATIBLE" in request["flags"]
            )
        return {
            "ok": True,
            "reason": "",
            "layers": self.log.layers,
            "inspector": inspected,
            "seconds": time.perf_counter() - start,
            **self._messages(),
        }

    def _serialized(self, request: dict[str, Any]) -> Any:  # noqa: ANN401
        """Build an engine and write it; builder and network are gone when this returns, with their memory."""
        trt = self.trt
        trt.init_libnvinfer_plugins(self.log, "")
        for library in request["plugins"]:
            self._load_plugins(library)
        try:
            builder = trt.Builder(self.log)
        except TypeError as e:  # what the bindings raise where the library has no device to build on
            started = self._reason("the library did not start")
            raise Refused(f"no NVIDIA device to build on: {started}") from e
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        if network is None:
            raise Refused(self._reason("the compiler makes no strongly typed network"))
        parser = trt.OnnxParser(network, self.log)
        if not parser.parse_from_file(request["onnx"]):
            problems = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
            raise Refused("; ".join(problems) or self._reason("the parser gave no reason"))
        config = self._config(builder, network, request)
        serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            raise Refused(self._reason("the compiler gave no reason"))
        if request["engine"] is not None:
            Path(request["engine"]).write_bytes(memoryview(serialized))
        self._keep_timing_cache(config, request["timing_cache"])
        return serialized

    def _load_plugins(self, library: str) -> None:
        """Register the plug-ins of a library, once: the registry refuses what it has already."""
        if library in self.libraries:
            return
        if self.trt.get_plugin_registry().load_library(library) is None:
            raise Refused(f"'{library}' cannot be loaded as plug-ins: " + self._reason("no reason given"))
        self.libraries.add(library)

    def _config(self, builder: Any, network: Any, request: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return the builder's configuration. Raises: Refused."""
        trt = self.trt
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the layer list is not written
        config.progress_monitor = _monitor(trt, self.send)
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and no FP32 any more
        for name in request["flags"]:
            config.set_flag(getattr(trt.BuilderFlag, name))
        if request["workspace_bytes"] is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
        if request["optimization_level"] is not None:
            config.builder_optimization_level = request["optimization_level"]
        if request["compatibility"] is not None:
            level = getattr(trt.HardwareCompatibilityLevel, request["compatibility"])
            config.hardware_compatibility_level = level
        if request["dla_core"] is not None:
            self._use_dla(builder, config, request["dla_core"])
        if hasattr(trt, "ComputeCapability"):
            config.num_compute_capabilities = len(request["targets"])
            for i, target in enumerate(request["targets"]):
                config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), i)
        elif request["timing_cache"] is not None:  # TensorRT-RTX has no tactics to time at build
            self._read_timing_cache(config, request["timing_cache"])
        for tensor in _tensors(network):
            if tensor.name in request["formats"]:
                form = getattr(trt.TensorFormat, request["formats"][tensor.name])
                tensor.allowed_formats = 1 << int(form)
        self._add_profiles(builder, network, config, request["profiles"])
        return config

    def _use_dla(self, builder: Any, config: Any, core: int) -> None:  # noqa: ANN401
        """Let every layer that the DLA takes run there, and the rest on the GPU."""
        cores = builder.num_DLA_cores
        if core >= cores:
            has = f"{cores} DLA cores" if cores else "no DLA core"
            raise Refused(f"--dla-core {core}: this device has {has}")
        config.default_device_type = self.trt.DeviceType.DLA
        config.DLA_core = core
        config.set_flag(self.trt.BuilderFlag.GPU_FALLBACK)

    def _add_profiles(self, builder: Any, network: Any, config: Any, profiles: list[dict[str, Any]]) -> None:  # noqa: ANN401
        """Add the ranges of what the network leaves free."""
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        free = [tensor for tensor in inputs if min(tuple(tensor.shape), default=0) < 0]
        for shapes in profiles if free else ():
            profile = builder.create_optimization_profile()
            for tensor in free:
                profile.set_shape(tensor.name, *(tuple(dims) for dims in shapes[tensor.name]))
            if config.add_optimization_profile(profile) < 0:
                raise Refused(self._reason("the shapes do not fit the network's inputs"))

    def _read_timing_cache(self, config: Any, path: str) -> None:  # noqa: ANN401
        """Start from what is known; a cache of another device or version is left out, which is said."""
        file = Path(path)
        known = file.read_bytes() if file.exists() else b""
        cache = config.create_timing_cache(known)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return
        empty = config.create_timing_cache(b"")
        taken = empty is not None and config.set_timing_cache(empty, ignore_mismatch=False)
        rest = "it is replaced" if taken else "nothing is kept"
        self.log.warnings.append(f"the timing cache '{path}' is not of this device and version: {rest}")

    def _keep_timing_cache(self, config: Any, path: str | None) -> None:  # noqa: ANN401
        """Write what was timed; where there is nothing to write the engine is built all the same."""
        if path is None or hasattr(self.trt, "ComputeCapability"):
            return
        cache = config.get_timing_cache()
        if cache is None:
            self.log.warnings.append(f"the timing cache '{path}' was not written: there is none")
            return
        part = Path(f"{path}.{os.getpid()}.part")
        try:
            part.write_bytes(bytes(memoryview(cache.serialize())))
            part.replace(path)
        except OSError as e:
            self.log.warnings.append(f"the timing cache '{path}' was not written: {e.strerror}")

    def _inspect(self, data: memoryview, *, host_code: bool) -> str | None:
        """Return the engine inspector's JSON, which takes a device; None where the engine does not load."""
        try:
            runtime = self.trt.Runtime(self.log)
        except TypeError:  # what the bindings raise where the library gives no runtime
            return None
        if host_code:
            runtime.engine_host_code_allowed = True  # of the lean runtime in it, built a moment ago
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            return None
        inspector = engine.create_engine_inspector()
        text: str = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        return text

    def _messages(self) -> dict[str, Any]:
        return {
            "warnings": list(dict.fromkeys(self.log.warnings)),
            "errors": list(dict.fromkeys(self.log.errors)),
            "skipped_tactics": self.log.skipped_tactics,
        }

    def _reason(self, otherwise: str) -> str:
        telling = [e for e in self.log.errors if not any(word in e for word in _SPURIOUS)]
        return "; ".join(dict.fromkeys(telling[:3])) or "; ".join(self.log.errors[:1]) or otherwise


def _device() -> str:
    """Name the compute capability of the first device as "sm86"; "" where there is none."""
    try:
        cudart = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return ""
    kinds = cudart.cudaDeviceAttr
    parts = []
    for kind in (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor):
        error, value = cudart.cudaDeviceGetAttribute(kind, 0)
        if error != cudart.cudaError_t.cudaSuccess:
            return ""
        parts.append(value)
    return f"sm{parts[0]}{parts[1]}"


def _tensors(network: Any) -> list[Any]:  # noqa: ANN401
    """Return the network's inputs, then its outputs."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    return [*inputs, *(network.get_output(i) for i in range(network.num_outputs))]


def _parser_error(error: Any) -> str:  # noqa: ANN401
    where = f" (node '{error.node_name()}', {error.node_operator()})" if hasattr(error, "node_name") else ""
    lines = (line for line in error.desc().splitlines() if not any(word in line for word in _SPURIOUS))
    return f"{'; '.join(dict.fromkeys(lines)) or error.desc()}{where}"


def _logger(trt: Any) -> Any:  # noqa: ANN401
    """Make a logger of this module's own base class, which keeps what a build has to report."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the base comes from the module given
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.clear()

        def clear(self) -> None:
            self.layers = ""
            self.warnings: list[str] = []
            self.errors: list[str] = []
            self.skipped_tactics = 0

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            if message.startswith(_LAYER_LIST):
                self.layers = message
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)
            elif severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            if "Skipping tactic" in message or "tactic due to insufficient memory" in message:
                self.skipped_tactics += 1

    return Log()


def _monitor(trt: Any, send: Any) -> Any:  # noqa: ANN401
    """Make a progress monitor that sends the steps of the outermost phase."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base comes from the module given
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.totals[phase] = steps

        def phase_finish(self, phase: str) -> None:
            if (total := self.totals.pop(phase, None)) is not None:
                send({"progress": [phase, total, total]})

        def step_complete(self, phase: str, step: int) -> bool:
            if (total := self.totals.get(phase)) is not None:
                send({"progress": [phase, min(step + 1, total), total]})
            return True

    return Monitor()


if __name__ == "__main__":
    main()
