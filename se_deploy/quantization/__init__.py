"""Precision lives in the graph: FP16 tensors, and INT8 as explicit QuantizeLinear and DequantizeLinear.

The same file then means the same numbers in every runtime, and no builder flag is needed. Names are imported
on first use: a backend that declares a policy, and the command line that lists them, pay for no numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from se_deploy.quantization.fp16 import Fp16, to_bf16, to_fp16
    from se_deploy.quantization.layer_cost import roofline_device
    from se_deploy.quantization.layers import FloatLayer
    from se_deploy.quantization.mixed_precision import AccuracyGoal, TradeoffPoint
    from se_deploy.quantization.options import QuantizationResult, QuantizeOptions
    from se_deploy.quantization.policies import PORTABLE, Policy
    from se_deploy.quantization.ptq import quantize
    from se_deploy.quantization.qdq import QuantizedLayer, QuantParams, to_qdq, trial
    from se_deploy.quantization.reconstruction import Request

__all__ = [
    "PORTABLE", "AccuracyGoal", "FloatLayer", "Fp16", "Policy", "QuantParams", "QuantizationResult",
    "QuantizeOptions", "QuantizedLayer", "Request", "TradeoffPoint", "quantize", "roofline_device", "to_bf16",
    "to_fp16", "to_qdq", "trial",
]  # fmt: skip

_MODULES = {
    "fp16": ("Fp16", "to_bf16", "to_fp16"),
    "layer_cost": ("roofline_device",),
    "layers": ("FloatLayer",),
    "mixed_precision": ("AccuracyGoal", "TradeoffPoint"),
    "options": ("QuantizationResult", "QuantizeOptions"),
    "policies": ("PORTABLE", "Policy"),
    "ptq": ("quantize",),
    "reconstruction": ("Request",),
    "qdq": ("QuantParams", "QuantizedLayer", "to_qdq", "trial"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
