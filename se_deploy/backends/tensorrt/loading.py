"""From an engine's bytes to an execution context: module, plug-ins, runtime, TensorRT-RTX's kernel cache.

TensorRT-RTX compiles its kernels when the context is made; EAGER makes it finish before the first call, so
that no fallback kernel is timed. What it compiled is kept beside the engine and read the next time.
"""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from se_deploy import files
from se_deploy.backends.tensorrt.flavours import FLAVOURS
from se_deploy.errors import BadArtifact, BadInput, CannotWrite, DeviceFailed, MissingRuntime

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine and what it needs to stay alive."""

    trt: Any  # the module
    engine: Any
    runtime: Any
    log: Any


_registered: set[tuple[str, Path]] = set()
"""Modules with the plug-in libraries that this process has loaded: a registry refuses what it has already."""


def module(runtime: str) -> Any:  # noqa: ANN401  (the modules are untyped)
    """Import the module of a flavour, by its name. Raises: MissingRuntime with the install command."""
    flavour = FLAVOURS[runtime]
    try:
        return importlib.import_module(flavour.module)
    except (ImportError, OSError) as e:
        raise MissingRuntime(flavour.absent(str(e)), hint=flavour.hint) from e


def load(
    trt: Any,  # noqa: ANN401
    path: Path,
    data: bytes,
    plugins: Sequence[Path] = (),
    *,
    host_code: bool = False,
) -> Loaded:
    """Deserialize the engine `data` of the file `path`, with the plug-ins of the module and of `plugins`.

    An engine without weights takes them from the ONNX file beside it. `host_code`: the engine may run code of
    its own on the host, as one that is version-compatible has to.
    Raises: BadArtifact with the module's own reason; MissingRuntime where the module itself does not start;
    BadInput for a library without plug-ins.
    """
    log = _logger(trt)
    trt.init_libnvinfer_plugins(log, "")
    for library in plugins:
        if (trt.__name__, library.resolve()) in _registered:
            continue
        if trt.get_plugin_registry().load_library(str(library.resolve())) is None:
            raise BadInput(
                f"'{library}' cannot be loaded as plug-ins: {log.reason()}",
                hint="name the shared library that registers them, built for this version and machine",
            )
        _registered.add((trt.__name__, library.resolve()))
    try:
        runtime = trt.Runtime(log)
    except TypeError as e:  # what the bindings raise where the library gives no runtime
        raise MissingRuntime(
            f"{trt.__name__} {trt.__version__} does not start here: {log.reason()}",
            hint="its libraries, the driver and the GPU must fit together; see `se-deploy doctor`",
        ) from e
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise BadArtifact(
            f"'{path}' cannot be loaded by {trt.__name__} {trt.__version__} on this device: {log.reason()}",
            hint="build the engine again with this version, for this device; name its --plugin libraries",
        )
    loaded = Loaded(trt, engine, runtime, log)
    if engine.refittable:
        _fill(loaded, path.with_name(f"{path.name}.onnx"))
    if engine.streamable_weights_size > 0:
        engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
    return loaded


def _fill(loaded: Loaded, onnx: Path) -> None:
    """Give an engine that was built without weights those of `onnx`. Raises: BadArtifact."""
    refitter = loaded.trt.Refitter(loaded.engine, loaded.log)
    if not refitter.get_missing_weights():
        return
    parser_refitter = loaded.trt.OnnxParserRefitter(refitter, loaded.log)
    if not (onnx.is_file() and parser_refitter.refit_from_file(str(onnx)) and refitter.refit_cuda_engine()):
        raise BadArtifact(
            f"the engine was built without weights, and '{onnx}' does not give them: {loaded.log.reason()}",
            hint="keep the ONNX file that it was built from beside it, under its own name",
        )


def context(loaded: Loaded, *, cuda_graph: bool, kept: Path) -> Any:  # noqa: ANN401
    """Make an execution context; on TensorRT-RTX this compiles kernels, or takes them from the file `kept`.

    Raises: DeviceFailed.
    """
    trt, engine = loaded.trt, loaded.engine
    if hasattr(trt, "CudaGraphStrategy"):
        runtime_config = engine.create_runtime_config()
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        runtime_config.dynamic_shapes_kernel_specialization_strategy = eager
        if cuda_graph:
            runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        kernels = runtime_config.create_runtime_cache()
        known = kept.read_bytes() if kept.is_file() else b""
        if known and not kernels.deserialize(known):  # of another GPU, driver or version: compiled anew
            known = b""
        runtime_config.set_runtime_cache(kernels)
        made = engine.create_execution_context(runtime_config)
        if made is not None:
            _keep(kept, bytes(memoryview(kernels.serialize())), known)
    else:
        made = engine.create_execution_context()
    if made is None:
        raise DeviceFailed(
            f"the engine gets no execution context on this device: {loaded.log.reason()}",
            hint="free memory on the device",
        )
    return made


def _keep(path: Path, compiled: bytes, known: bytes) -> None:
    """Write what was compiled, where that is new; a folder that cannot be written only costs time again."""
    if compiled and compiled != known:
        with contextlib.suppress(CannotWrite):
            files.write_bytes(path, compiled)


def _logger(trt: Any) -> Any:  # noqa: ANN401
    """Make a logger of the module's own class that keeps what went wrong."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the base comes from the module given
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

        def reason(self) -> str:
            return "; ".join(self.errors[:2]) or "it gives no reason"

    return Log()
