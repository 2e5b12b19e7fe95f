"""The verbs: each is one function that reads like the sentence it does."""

from __future__ import annotations

from se_deploy.pipeline.building import BuildResult, build_engine
from se_deploy.pipeline.exporting import ExportResult, QuantizeResult, export, quantize
from se_deploy.pipeline.inspecting import EngineInspection, InspectResult, inspect
from se_deploy.pipeline.judging import Limits, ParityResult, ProfileResult, parity, profile
from se_deploy.pipeline.running import RunResult, demo, run

__all__ = [
    "BuildResult", "EngineInspection", "ExportResult", "InspectResult", "Limits", "ParityResult",
    "ProfileResult", "QuantizeResult", "RunResult", "build_engine", "demo", "export", "inspect", "parity",
    "profile", "quantize", "run",
]  # fmt: skip
