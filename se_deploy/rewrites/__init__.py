"""ir.Model + target -> the same function, cheaper: exact rewrites, chosen by the compiler's own plan."""

from __future__ import annotations

from se_deploy.rewrites.base import Rewriter, Site
from se_deploy.rewrites.catalogue import NAMES, REWRITES
from se_deploy.rewrites.choose import allowed, everywhere, optimize
from se_deploy.rewrites.replay import Choice, Replayed, from_json, replay, to_json
from se_deploy.rewrites.search import Cost, Found, Step, planned_bytes, search

__all__ = [
    "NAMES", "REWRITES", "Choice", "Cost", "Found", "Replayed", "Rewriter", "Site", "Step", "allowed",
    "everywhere", "from_json", "optimize", "planned_bytes", "replay", "search", "to_json",
]  # fmt: skip
