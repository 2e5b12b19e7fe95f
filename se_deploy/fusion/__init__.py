"""Plan + SE blocks -> a verdict per block: fused, split or fallback, its cost, and what causes it."""

from __future__ import annotations

from se_deploy.fusion.sizes import filled
from se_deploy.fusion.totals import Totals, from_schema, to_schema, totals, without_gates
from se_deploy.fusion.verdict import FusionRules, Verdict, verdicts

__all__ = [
    "FusionRules",
    "Totals",
    "Verdict",
    "filled",
    "from_schema",
    "to_schema",
    "totals",
    "verdicts",
    "without_gates",
]
