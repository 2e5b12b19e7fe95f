"""ir.Model -> the same function, cheaper: exact rewrites, one idea a file."""

from __future__ import annotations

from se_deploy.passes.rewrites.base import Rewriter, Site
from se_deploy.passes.rewrites.catalogue import NAMES, REWRITES

__all__ = ["NAMES", "REWRITES", "Rewriter", "Site"]
