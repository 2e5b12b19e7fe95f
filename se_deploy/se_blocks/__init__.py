"""ir.Model -> SEBlock | NotSE(reason), by structure: a dataflow analysis reads the graph, never writes."""

from __future__ import annotations

from se_deploy.se_blocks.census import detect
from se_deploy.se_blocks.types import SE_KINDS, Census, NotSE, SEBlock, formula_params

__all__ = ["SE_KINDS", "Census", "NotSE", "SEBlock", "detect", "formula_params"]
