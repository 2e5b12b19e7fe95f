"""Plan + SE blocks -> a verdict per block: fused, split or fallback, its cost, and what causes it."""

from __future__ import annotations

from se_deploy.fusion.totals import Totals, plan_from_json, plan_json, totals, without_gates
from se_deploy.fusion.verdict import FusionRules, Verdict, verdicts

__all__ = [
    "FusionRules",
    "Totals",
    "Verdict",
    "plan_from_json",
    "plan_json",
    "totals",
    "verdicts",
    "without_gates",
]
