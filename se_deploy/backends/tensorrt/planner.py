"""A compiler asked for plans only, and never twice for the same graph."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

from se_deploy import files, graph
from se_deploy.backends.engine import BuildOptions
from se_deploy.backends.tensorrt.compiler import Compiler
from se_deploy.backends.tensorrt.flavours import TENSORRT_RTX
from se_deploy.errors import BadInput
from se_deploy.plan import Plan
from se_deploy.schema import encode, load

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from se_deploy.targets import Target

_FORMAT = "2"  # of the cached file; part of its name


class Planner:
    """Plans graphs for one target (protocols.Planner); remembers them by the hash of their bytes."""

    def __init__(self, compiler: Compiler, options: BuildOptions, cache: Path | None = None) -> None:
        """`cache`: a folder that keeps plans between runs, made when first needed."""
        self._compiler = compiler
        self._options = options
        self._cache = cache
        self._known: dict[str, Plan] = {}
        self.asked = 0  # how often the compiler itself was asked

    def plan(self, model: ir.Model) -> Plan:
        """Plan `model`: 0.2 to 1 s, nothing where it is known. Raises BuildFailed with the reason."""
        onnx = graph.to_bytes(model)
        key = self._key(onnx)
        if key not in self._known:
            self._known[key] = self._read(key) or self._ask(model, onnx, key)
        return self._known[key]

    def close(self) -> None:
        """End the compiler's process."""
        self._compiler.close()

    def _ask(self, model: ir.Model, onnx: bytes, key: str) -> Plan:
        self.asked += 1
        plan = self._compiler.plan(model, self._options, onnx=onnx)
        if self._cache is not None:
            self._cache.mkdir(parents=True, exist_ok=True)
            files.write_text(self._cache / f"{key}.json", encode(plan, indent=None))
        return plan

    def _read(self, key: str) -> Plan | None:
        path = None if self._cache is None else self._cache / f"{key}.json"
        if path is None or not path.exists():
            return None
        return load(path, Plan, what="a saved plan", error=BadInput, hint="delete the file to plan again")

    def _key(self, onnx: bytes) -> str:
        digest = hashlib.sha256(onnx)
        digest.update(f"{_FORMAT}|{self._compiler.runtime}|{self._compiler.version}|{self._options}".encode())
        return digest.hexdigest()


def start_planner(
    runtime: str = TENSORRT_RTX.name,
    target: Target | None = None,
    cache: Path | None = None,
    options: BuildOptions | None = None,
) -> Planner:
    """Start a compiler to plan with; `target` None is its default.

    Raises: MissingRuntime; BadInput for a target that it lacks.
    """
    compiler = Compiler(runtime)
    if target is not None:
        compiler.check_target(target)
        target = dataclasses.replace(target, device=None)  # its plan is that of its capability
    targets = () if target is None else (target,)
    return Planner(compiler, dataclasses.replace(options or BuildOptions(), targets=targets), cache)
