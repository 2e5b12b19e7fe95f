"""INT8 that keeps the network's answers."""

from __future__ import annotations

from se_deploy.quantization.cost import device_of
from se_deploy.quantization.goals import Goal, Point
from se_deploy.quantization.options import POLICIES, Policy, Quantized, QuantizeOptions
from se_deploy.quantization.verb import quantize

__all__ = ["POLICIES", "Goal", "Point", "Policy", "QuantizeOptions", "Quantized", "device_of", "quantize"]
