"""Advice on SE reduction ratios: what a trained network's hidden units and gates do on real data.

Nothing is changed: it is advice for the next training, or for who wants to narrow a block by hand.
"""

from __future__ import annotations

from se_deploy.advice.advisor import CLOSED, CONSTANT, TOLERANCE, Advice, AdviceResult, SkippedBlock, advise
from se_deploy.advice.widths import Width, effective_rank

__all__ = [
    "CLOSED",
    "CONSTANT",
    "TOLERANCE",
    "Advice",
    "AdviceResult",
    "SkippedBlock",
    "Width",
    "advise",
    "effective_rank",
]  # fmt: skip
