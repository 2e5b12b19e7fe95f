"""Quantization policies: where Q/DQ goes and in what form, as values that a backend can declare.

Imported for its names by the command line, so that it imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OffsetFolding = Literal["all", "unpadded", "pointwise", "none"]
"""Which layers may have an offset folded into their bias: all, those that pad nothing, those of them that
read what a kernel of its own computes point by point (where the Sub fuses), or none."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Where Q/DQ goes and in what form; `reason` is what was measured."""

    name: str
    reason: str
    per_channel_weights: bool  # a scale per output channel, or one per tensor
    quantize_depthwise: bool = True
    depthwise_reason: str = ""  # why they stay in float, where they do
    offset_folding: OffsetFolding = "all"
    channel_equalization: bool = True  # by a Mul of its own in front of the quantizer
    folded_equalization: bool = False  # by the weights around the tensor
    quantize_residual: bool = False  # the tensor that a residual Add reads is quantized once for all readers
    whole_chain: bool = False  # summands and poolings read INT8 too, and Concats one scale: nothing breaks it
    float_macs: float = 0.0  # share of MACs that may stay in float, spent where INT8 hurts most
    base_precision: Literal["fp32", "fp16"] = "fp32"  # of what is not INT8, where nothing else is asked


FLOAT_MACS = 0.045
"""The contract asks for 95 % of the multiply-accumulates in INT8; half a percent is left for SE gates."""

PORTABLE = Policy(
    "portable",
    "symmetric, per-channel weights, every layer outside the SE gates: the most accurate form that every "
    "runtime reads",
    per_channel_weights=True,
    float_macs=FLOAT_MACS,
)
