"""ir.Model + compiler -> Engine: bytes, the plan that the compiler chose, and where both came from."""

from __future__ import annotations

from se_deploy.engine.compiler import BuildOptions, Compiler, Engine, Profile, RuntimeName
from se_deploy.engine.planner import Planner, planner

__all__ = ["BuildOptions", "Compiler", "Engine", "Planner", "Profile", "RuntimeName", "compiler", "planner"]


def compiler(runtime: RuntimeName) -> Compiler:
    """Start a compiler. Raises: MissingRuntime with the command that installs it."""
    return Compiler(runtime)
