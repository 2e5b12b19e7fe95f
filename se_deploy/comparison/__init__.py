"""Outputs against outputs: measured in one streaming pass by what each of them is, then held to a tolerance.

`Parity` holds numbers, `Tolerance` decides pass or fail.
"""

from __future__ import annotations

from se_deploy.comparison.divergence import Divergence, first_divergence
from se_deploy.comparison.parity import (
    OutputParity,
    Parity,
    compare,
    measured,
    measured_together,
    paired,
)
from se_deploy.comparison.sums import IDENTICAL_DB
from se_deploy.comparison.tolerance import PRESETS, Miss, Tolerance, tolerance

__all__ = [
    "IDENTICAL_DB", "PRESETS", "Divergence", "Miss", "OutputParity", "Parity", "Tolerance", "compare",
    "first_divergence", "measured", "measured_together", "paired", "tolerance",
]  # fmt: skip
