"""ir.Model + target -> the rewrites that pay there, chosen by the compiler's own plan."""

from __future__ import annotations

from se_deploy.passes.search.choose import allowed, everywhere, optimize
from se_deploy.passes.search.plan_search import (
    Cost,
    Goal,
    GraphCost,
    SearchResult,
    Step,
    planned_bytes,
    refusals,
    search,
)
from se_deploy.passes.search.replay import Choice, Replayed, from_json, replay, to_json

__all__ = [
    "Choice",
    "Cost",
    "Goal",
    "GraphCost",
    "Replayed",
    "SearchResult",
    "Step",
    "allowed",
    "everywhere",
    "from_json",
    "optimize",
    "planned_bytes",
    "refusals",
    "replay",
    "search",
    "to_json",
]  # fmt: skip
