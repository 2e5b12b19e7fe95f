"""What a trained network's SE blocks make of their width: hidden units and gates looked at on real data.

Nothing is changed: it is advice for the next training, or for who wants to cut a block by hand.
"""

from __future__ import annotations

from se_deploy.advice.look import CONSTANT, SHUT, TOLERANCE, Advice, Advised, Unadvised, advise
from se_deploy.advice.widths import Width, effective_rank

__all__ = [
    "CONSTANT", "SHUT", "TOLERANCE", "Advice", "Advised", "Unadvised", "Width", "advise", "effective_rank",
]  # fmt: skip
