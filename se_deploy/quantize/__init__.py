"""INT8 that keeps the network's answers."""

from __future__ import annotations

from se_deploy.quantize.options import POLICIES, Policy, Quantized, QuantizeOptions
from se_deploy.quantize.verb import quantize

__all__ = ["POLICIES", "Policy", "QuantizeOptions", "Quantized", "quantize"]
