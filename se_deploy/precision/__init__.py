"""Precision lives in the graph: FP16 tensors, and INT8 as explicit QuantizeLinear and DequantizeLinear.

The same file then means the same numbers in every runtime, and no builder flag is needed.
"""

from __future__ import annotations

from se_deploy.precision.fp16 import Fp16, to_fp16
from se_deploy.precision.qdq import Grid, QuantizedLayer, to_qdq, trial

__all__ = ["Fp16", "Grid", "QuantizedLayer", "to_fp16", "to_qdq", "trial"]
