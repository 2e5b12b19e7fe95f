"""Precision lives in the graph: FP16 tensors, and INT8 as explicit QuantizeLinear and DequantizeLinear.

The same file then means the same numbers in every runtime, and no builder flag is needed.
"""

from __future__ import annotations

from se_deploy.quantization.cost import device_of
from se_deploy.quantization.fp16 import Fp16, to_fp16
from se_deploy.quantization.goals import Goal, Point
from se_deploy.quantization.options import POLICIES, Policy, Quantized, QuantizeOptions
from se_deploy.quantization.qdq import Grid, QuantizedLayer, to_qdq, trial
from se_deploy.quantization.verb import quantize

__all__ = [
    "POLICIES", "Fp16", "Goal", "Grid", "Point", "Policy", "QuantizeOptions", "Quantized", "QuantizedLayer",
    "device_of", "quantize", "to_fp16", "to_qdq", "trial",
]  # fmt: skip
