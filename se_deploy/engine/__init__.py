"""ir.Model + compiler -> Engine: bytes, the plan that the compiler chose, and where both came from."""

from __future__ import annotations

from se_deploy.engine.compiler import BuildOptions, Compiler, Engine, Profile, RuntimeName
from se_deploy.engine.found import FoundPrecision, PrecisionName, found_precision
from se_deploy.engine.inspector import plan_from_inspector
from se_deploy.engine.manifest import Manifest
from se_deploy.engine.planner import Planner, planner

__all__ = [
    "BuildOptions",
    "Compiler",
    "Engine",
    "FoundPrecision",
    "Manifest",
    "Planner",
    "PrecisionName",
    "Profile",
    "RuntimeName",
    "compiler",
    "found_precision",
    "plan_from_inspector",
    "planner",
]


def compiler(runtime: RuntimeName) -> Compiler:
    """Start a compiler. Raises: MissingRuntime with the command that installs it."""
    return Compiler(runtime)
