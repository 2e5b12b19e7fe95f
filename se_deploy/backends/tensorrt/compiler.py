"""Builds engines with TensorRT or TensorRT-RTX, and reads back what the compiler planned.

Both are one class given the module's name; the module itself lives in a process of its own (`worker`), so
that a compiler that is killed for memory or crashes is reported and not suffered. Precision is in the graph:
networks are strongly typed and no precision flag is set.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import onnx_ir as ir

from se_deploy import graph, locks, once
from se_deploy.backends import keeping
from se_deploy.backends.engine import BuildOptions, Engine, free_inputs, profiles
from se_deploy.backends.tensorrt import answers, features, gpu, inspector, layer_log
from se_deploy.backends.tensorrt.flavours import FLAVOURS, TENSORRT, TENSORRT_RTX, Flavour
from se_deploy.backends.tensorrt.sparsity import sparse_layers
from se_deploy.errors import BadInput, BuildFailed, MissingRuntime
from se_deploy.options import EngineFeatures
from se_deploy.plan import Plan
from se_deploy.protocols import silent
from se_deploy.targets import Target, resolve_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from se_deploy.backends.tensorrt.answers import Answer
    from se_deploy.protocols import Progress
    from se_deploy.schema.files import ShapeRange

DEFAULT_TARGET = resolve_target("sm86")
"""What TensorRT-RTX plans for where nothing is said; sm80, sm89 and sm120 get the same plan."""

_INT8_SINCE = (1, 7)  # older TensorRT-RTX fails inside on any INT8 convolution
_KILLED = (-9, 137)  # as the process itself, and as a shell or container in between, report SIGKILL
_WORKER = Path(__file__).with_name("worker.py")


class Compiler:
    """TensorRT or TensorRT-RTX, in a process that starts once and serves every build."""

    def __init__(self, runtime: str) -> None:
        """Start the compiler of a flavour, by its name.

        Raises: MissingRuntime with the command that installs it; BuildFailed where its process dies.
        """
        self.runtime = runtime
        self._flavour = FLAVOURS[runtime]
        self._process = keeping.take(runtime, lambda: _Process(self._flavour))
        self.version: str = self._process.capabilities["version"]
        self.targets: tuple[str, ...] = tuple(self._process.capabilities["targets"])  # () where this device
        self.device: str = self._process.capabilities["device"]  # "sm87"; "" where it does not matter
        if not self._process.capabilities["strongly_typed"]:
            raise MissingRuntime(
                f"{TENSORRT.title} {self.version} cannot build strongly typed networks",
                hint=f"use {TENSORRT.title} 10.3 or newer (JetPack 6.1), or {TENSORRT_RTX.title}",
            )

    def build(
        self, model: ir.Model, options: BuildOptions | None = None, *, progress: Progress = silent
    ) -> Engine:
        """Build an engine for `model`.

        Raises: BuildFailed with the compiler's reason; BadInput for a target that it cannot build for;
        UnsupportedGraph where a free dimension has no range.
        """
        options = options or BuildOptions()
        with locks.scratch() as folder:
            answer, plan, shapes = self._ask(model, options, folder, "model.engine", progress=progress)
        reply = answer.reply
        return Engine(
            data=answer.engine or b"",
            plan=plan,
            runtime=self.runtime,
            shapes=shapes,
            seconds=reply["seconds"],
            workspace_bytes=options.workspace_bytes,
            warnings=(*self._notes(plan, options, model), *self._quoted(reply["warnings"])),
            log_errors=tuple(reply["errors"]),
            skipped_tactics=reply["skipped_tactics"],
            free=free_inputs(model),
            more_shapes=tuple(profiles(model, given) for given in options.more_shapes),
            features=options.features,
            kept=answer.kept,
        )

    def plan(
        self, model: ir.Model, options: BuildOptions | None = None, *, onnx: bytes | None = None
    ) -> Plan:
        """Return what `build` would build, without the engine; `onnx`: the model's bytes, where at hand.

        Raises as `build` does.
        """
        with locks.scratch() as folder:
            return self._ask(model, options or BuildOptions(), folder, None, data=onnx)[1]

    def check_target(self, target: Target) -> None:
        """Raises: BadInput where this compiler cannot build for `target`."""
        if target.name in (self.targets or (self.device or target.name,)):
            return
        if not self.targets:
            raise BadInput(
                f"TensorRT {self.version} builds for the device that it runs on, {self.device}, "
                f"and not for {target.called}",
                hint="build on that device itself, or use --runtime tensorrt-rtx where it has that target",
            )
        name = target.name if target.device is None else f"{target.device.title} ({target.name})"
        full = "build with full TensorRT on the device itself"
        raise BadInput(
            f"{name} is no target of TensorRT-RTX {self.version}, which builds for {', '.join(self.targets)}",
            hint=f"{full}: --runtime tensorrt" if target.sm > min(map(_sm, self.targets)) else full,
        )

    def close(self) -> None:
        """Give the compiler's process back: it ends, or serves the next compiler (`keeping.kept`)."""
        keeping.give_back(self.runtime, self._process)

    def _ask(
        self,
        model: ir.Model,
        options: BuildOptions,
        folder: Path,
        engine: str | None,
        *,
        progress: Progress = silent,
        data: bytes | None = None,
    ) -> tuple[Answer, Plan, Mapping[str, ShapeRange]]:
        targets = options.targets or ((DEFAULT_TARGET,) if self.targets else ())
        for target in targets:
            self.check_target(target)
        self._check_int8(model)
        self.check_features(options.features)
        shapes = profiles(model, options.shapes)
        ranges = (shapes, *(profiles(model, given) for given in options.more_shapes))
        request = {
            "onnx": str(folder / "model.onnx"),
            "engine": None if engine is None else str(folder / engine),
            "targets": [target.name for target in targets] if self.targets else [],
            "profiles": [{name: [p.min, p.opt, p.max] for name, p in one.items()} for one in ranges],
            "workspace_bytes": options.workspace_bytes,
            "timing_cache": None if options.timing_cache is None else str(options.timing_cache.absolute()),
            **_asked(options.features),
        }
        device = None if self.targets else gpu.here()
        unnamed = not self.targets and device is None  # it builds for a GPU, and nothing here says which one
        with once.kept_in(None) if unnamed or _changes(options) else contextlib.nullcontext():
            answer = answers.answer(
                request,
                graph.to_bytes(model) if data is None else data,
                # What makes this compiler's answers those of no other: full TensorRT times kernels here.
                {"runtime": self.runtime, **self._process.capabilities, "gpu": repr(device)},
                lambda asked: self._process.ask(asked, progress),
            )
        reply = answer.reply
        if not reply["ok"]:
            raise BuildFailed(
                f"{self._flavour.title} {self.version} refused the network: {reply['reason']}",
                hint=_in_body(model, reply["reason"]) or _hint(reply["reason"]),
            )
        names = "+".join(target.name for target in targets) if self.targets else self.device
        return answer, self._plan(reply, names), shapes

    def _plan(self, reply: dict[str, Any], target: str) -> Plan:
        if reply["inspector"] is not None:
            return inspector.plan_from_inspector(reply["inspector"], version=self.version, target=target)
        kernels = layer_log.first_profile(layer_log.parse_layers(reply["layers"]))
        if not kernels:
            raise BuildFailed(
                f"{self._flavour.title} {self.version} built the network but did not say what it planned",
                hint="report it with the version of the compiler",
            )
        return Plan(self.runtime, self.version, target, kernels)

    def check_features(self, asked: EngineFeatures) -> None:
        """Raises: BadInput for what this runtime cannot do."""
        if asked == EngineFeatures():
            return
        levels = self._process.capabilities["compatibility"]
        features.check(asked, self._flavour, self.version, device=gpu.here() is not None, levels=levels)

    def _check_int8(self, model: ir.Model) -> None:
        if not self.targets or _version(self.version) >= _INT8_SINCE:
            return
        if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph):
            raise BuildFailed(
                f"TensorRT-RTX {self.version} cannot build INT8 convolutions",
                hint="pip install 'se-deploy[rtx]', or build the FP16 network",
            )

    def _quoted(self, warnings: Sequence[str]) -> tuple[str, ...]:
        """Return the compiler's own warnings as its words: not all are true of what was asked for."""
        return tuple(f"{self._flavour.title} says: {text}" for text in warnings)

    def _notes(self, plan: Plan, options: BuildOptions, model: ir.Model) -> tuple[str, ...]:
        """Return what was asked for and ignored, and what the targets cost each other."""
        notes = []
        if self.targets and options.timing_cache is not None:
            notes.append(f"the timing cache '{options.timing_cache}' is not used: TensorRT-RTX times nothing")
        if options.features.sparsity and not sparse_layers(model):
            notes.append("--sparsity changes nothing: no layer has weights that are 2:4 sparse")
        if options.more_shapes:
            notes.append("the plan is that of the first optimization profile")
        targets = plan.target.split("+")
        if "sm75" in targets and len(targets) > 1:
            notes.append(
                "one engine for sm75 and others gives them all Turing's slower plan: build sm75 apart"
            )
        return tuple(notes)


def _changes(options: BuildOptions) -> bool:
    """Whether a build does more than what its request says, or another one of the same is asked for."""
    asked = options.features
    return options.timing_cache is not None or bool(asked.plugins) or asked.best_of > 1


def _asked(asked: EngineFeatures) -> dict[str, Any]:
    """Return what of a request is an option."""
    level = asked.hardware_compatibility
    return {
        "flags": features.flags(asked),
        "optimization_level": asked.optimization_level,
        "compatibility": None if level is None else features.level_name(level),
        "dla_core": asked.dla_core,
        "formats": dict(asked.io_formats),
        "plugins": [str(path.resolve()) for path in asked.plugins],
    }


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _sm(target: str) -> int:
    return int(target.removeprefix("sm"))


def _in_body(model: ir.Model, reason: str) -> str | None:
    """Return what to do where the node named is inside of another one; None where it is not."""
    for outer in model.graph:
        for body in (a.as_graph() for a in outer.attributes.values() if a.type == ir.AttributeType.GRAPH):
            if any(node.name and f"'{node.name}'" in reason for node in body.all_nodes()):
                return (
                    f"it is inside of {outer.op_type} '{outer.name}', whose bodies are all built at the same "
                    "sizes: export the network with the one that you need in its place"
                )
    return None


def _hint(reason: str) -> str:
    if "workspace" in reason:
        return "give more with --workspace"
    if "no NVIDIA device" in reason:
        return "build on the device, or use --runtime tensorrt-rtx, which builds without one"
    if "non-zero zero point" in reason.lower() or "Scale coefficients" in reason:
        return "quantize with `se-deploy quantize`: symmetric, with positive scales"
    if "not found in plugin registry" in reason:
        return (
            "this compiler lacks the operator: leave it outside of the graph (torchvision's NMS: "
            "--model-arg nms=False), or build with full TensorRT on the device"
        )
    return "look at the node named, or export the network again with `se-deploy export`"


class _Process:
    """The worker's two pipes; it is started again after it died."""

    def __init__(self, flavour: Flavour) -> None:
        self._flavour = flavour
        self.capabilities: dict[str, Any] = {}
        self._worker = self._start()

    @property
    def alive(self) -> bool:
        return self._worker.process.poll() is None

    @property
    def pid(self) -> int:
        return self._worker.process.pid

    def ask(self, request: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Send one request and wait for its last reply. Raises: BuildFailed where the process died."""
        if not self.alive:
            self._worker = self._start()
        worker = self._worker
        try:
            worker.write(request)
            while (reply := worker.read()) is not None:
                if "progress" not in reply:
                    return reply
                progress(*reply["progress"])
        except BaseException:
            worker.end()  # an interrupted build must not go on
            raise
        code, words = worker.process.wait(), worker.last_words()
        worker.end()
        killed = code in _KILLED
        how = "was killed, most likely for want of memory" if killed else f"crashed (exit status {code})"
        raise BuildFailed(
            f"the {self._flavour.title} compiler {how}{words}",
            hint="free memory, or give a smaller --workspace and --max-shapes" if killed else "report it",
        )

    def end(self) -> None:
        self._worker.end()

    def _start(self) -> _Worker:
        flavour = self._flavour
        worker = _Worker(flavour.module)
        hello = worker.read()
        if hello is None:  # it is installed: what cannot be imported says so itself
            code, words = worker.process.wait(), worker.last_words()
            worker.end()
            killed = code in _KILLED
            how = "it was killed, most likely for want of memory" if killed else f"exit status {code}"
            raise BuildFailed(
                f"the {flavour.title} compiler died while it started ({how}){words}",
                hint="free memory, and try again" if killed else f"install it again: {flavour.hint}",
            )
        if "missing" in hello:
            worker.process.wait()
            worker.end()
            raise MissingRuntime(flavour.absent(hello["missing"]), hint=flavour.hint)
        self.capabilities = hello
        return worker


class _Worker:
    """One process of the worker script, its pipes and what it wrote to stderr."""

    def __init__(self, module: str) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self.process = subprocess.Popen(
            [sys.executable, str(_WORKER), module, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,  # Ctrl-C is for the caller to handle, which then ends this process
        )
        self.end = weakref.finalize(self, _end, self.process, self._stderr)

    def write(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None  # noqa: S101  (opened as a pipe above)
        with contextlib.suppress(BrokenPipeError):  # the read that follows sees that it died
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()

    def read(self) -> dict[str, Any] | None:
        assert self.process.stdout is not None  # noqa: S101  (opened as a pipe above)
        line = self.process.stdout.readline()
        reply: dict[str, Any] | None = json.loads(line) if line else None
        return reply

    def last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""


def _end(process: subprocess.Popen[str], stderr: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
