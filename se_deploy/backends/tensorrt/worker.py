"""The process that holds a compiler, run as a script: one request a line on stdin, replies on stdout.

A compiler can be killed for memory or crash, and it writes to the terminal as it likes: here only a build is
lost, and nothing but replies reaches the caller. It imports nothing of this package, so that it starts in the
time that the compiler's own module takes.

    argv     the module: tensorrt or tensorrt_rtx
    first    {"version", "targets", "strongly_typed", "device"} or {"missing"}
    request  {"onnx": path, "engine": path | null, "targets", "shapes", "workspace_bytes", "timing_cache"}
    replies  {"progress": [step, done, total]} any number of times, then
             {"ok", "reason", "layers", "inspector", "warnings", "errors", "skipped_tactics", "seconds"}
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_LAYER_LIST = ("Layers:", "Engine Layer Information")
_SPURIOUS = ("Thread context has not been set", "cudaError", "CUDA initialization", "Error Code 35")


def main() -> None:
    """Serve requests until stdin ends."""
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
    builder = Builder(trt, send)
    send(builder.capabilities())
    for line in sys.stdin:
        send(builder.build(json.loads(line)))


class Builder:
    """Builds engines with one of the two TensorRT modules, which differ only in what they lack."""

    def __init__(self, trt: Any, send: Any) -> None:  # noqa: ANN401  (the modules are untyped)
        """`trt`: the imported module; `send`: takes one reply."""
        self.trt = trt
        self.send = send
        self.log = _logger(trt)

    def capabilities(self) -> dict[str, Any]:
        """Return what this module is, by what it has, never by its version."""
        compute = getattr(self.trt, "ComputeCapability", None)
        targets = [] if compute is None else [m.lower() for m in compute.__members__ if m.startswith("SM")]
        return {
            "version": self.trt.__version__,
            "targets": targets,
            "strongly_typed": hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"),
            "device": _device() if compute is None else "",  # TensorRT-RTX needs none
        }

    def build(self, request: dict[str, Any]) -> dict[str, Any]:
        """Build one engine; a refusal is a reply, not an exception."""
        trt, start = self.trt, time.perf_counter()
        self.log.clear()
        try:
            builder = trt.Builder(self.log)
        except TypeError:  # what the bindings raise where the library has no device to build on
            return self._failed("no NVIDIA device to build on: " + self._reason("the library did not start"))
        flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flag)
        parser = trt.OnnxParser(network, self.log)
        if not parser.parse_from_file(request["onnx"]):
            problems = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
            return self._failed("; ".join(problems) or self._reason("the parser gave no reason"))
        config = self._config(builder, network, request)
        if isinstance(config, str):
            return self._failed(config)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            return self._failed(self._reason("the compiler gave no reason"))
        data = memoryview(engine)
        if request["engine"] is not None:
            Path(request["engine"]).write_bytes(data)
        self._keep_timing_cache(config, request["timing_cache"])
        return {
            "ok": True,
            "reason": "",
            "layers": self.log.layers,
            "inspector": None if hasattr(trt, "ComputeCapability") else self._inspect(data),
            "seconds": time.perf_counter() - start,
            **self._messages(),
        }

    def _config(self, builder: Any, network: Any, request: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return the builder's configuration, or the reason why there is none."""
        trt = self.trt
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the layer list is not written
        if request["workspace_bytes"] is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
        if hasattr(trt, "ComputeCapability") and request["targets"]:
            config.num_compute_capabilities = len(request["targets"])
            for i, target in enumerate(request["targets"]):
                config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), i)
        elif request["timing_cache"] is not None:  # TensorRT-RTX has no tactics to time at build
            cache = Path(request["timing_cache"])
            known = cache.read_bytes() if cache.exists() else b""
            config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
        if hasattr(trt, "IProgressMonitor"):
            config.progress_monitor = _monitor(trt, self.send)
        profile, dynamic = builder.create_optimization_profile(), False
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            if min(tuple(tensor.shape), default=0) >= 0:
                continue
            dynamic = True
            profile.set_shape(tensor.name, *(tuple(dims) for dims in request["shapes"][tensor.name]))
        if dynamic and config.add_optimization_profile(profile) < 0:
            return self._reason("the shapes do not fit the network's inputs")
        return config

    def _keep_timing_cache(self, config: Any, path: str | None) -> None:  # noqa: ANN401
        if path is None or hasattr(self.trt, "ComputeCapability"):
            return
        part = Path(f"{path}.{os.getpid()}.part")
        part.write_bytes(memoryview(config.get_timing_cache().serialize()))
        part.replace(path)

    def _inspect(self, data: memoryview) -> str | None:
        """Return the engine inspector's JSON, which takes a device; None where the engine does not load."""
        engine = self.trt.Runtime(self.log).deserialize_cuda_engine(data)
        if engine is None:
            return None
        inspector = engine.create_engine_inspector()
        text: str = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        return text

    def _failed(self, reason: str) -> dict[str, Any]:
        return {"ok": False, "reason": reason, **self._messages()}

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


def _parser_error(error: Any) -> str:  # noqa: ANN401
    where = f" (node '{error.node_name()}', {error.node_operator()})" if hasattr(error, "node_name") else ""
    return f"{error.desc()}{where}"


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
