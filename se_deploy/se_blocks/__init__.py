"""Find every SE block of an FP32 graph by structure; reads, never writes."""

from __future__ import annotations

from se_deploy.se_blocks.census import detect
from se_deploy.se_blocks.types import SE_KINDS, Census, NotSE, SEBlock, formula_params

__all__ = ["SE_KINDS", "Census", "NotSE", "SEBlock", "detect", "formula_params"]
