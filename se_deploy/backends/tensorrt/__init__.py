"""TensorRT and TensorRT-RTX: ir.Model + compiler -> Engine: bytes, the plan that the compiler chose."""

from __future__ import annotations

from se_deploy.backends.tensorrt.compiler import BuildOptions, Compiler, Engine, Profile, RuntimeName
from se_deploy.backends.tensorrt.inspector import plan_from_inspector
from se_deploy.backends.tensorrt.planner import Planner, planner

__all__ = [
    "BuildOptions",
    "Compiler",
    "Engine",
    "Planner",
    "Profile",
    "RuntimeName",
    "compiler",
    "plan_from_inspector",
    "planner",
]


def compiler(runtime: RuntimeName) -> Compiler:
    """Start a compiler. Raises: MissingRuntime with the command that installs it."""
    return Compiler(runtime)
