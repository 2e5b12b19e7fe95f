"""Quantization policies by name: the portable one, and those of the compilers that have rules of their own.

Imported by the command line for its choices, so that it imports nothing heavy.
"""

from __future__ import annotations

from se_deploy.errors import BadInput
from se_deploy.quantization.policies import FLOAT_MACS, PORTABLE, Policy

TENSORRT_RTX = Policy(
    "tensorrt-rtx",
    "per-channel weights make TensorRT-RTX write FP32 between layers (0.50 against 0.30 MB per image "
    "and convolution), and it copies a depthwise input to four times its channels",
    per_channel_weights=False,
    quantize_depthwise=False,
    depthwise_reason="TensorRT-RTX copies its input to four times its channels",
    offset_folding="unpadded",
    quantize_residual=True,
    base_precision="fp16",
)

TENSORRT = Policy(
    "tensorrt",
    "per-channel weights are TensorRT's own form; nothing may stand between a layer and the next "
    "quantizer, so that it can emit INT8",
    per_channel_weights=True,
    offset_folding="none",
    channel_equalization=False,
    quantize_residual=True,
    float_macs=FLOAT_MACS,
    base_precision="fp16",
)

POLICIES = {policy.name: policy for policy in (PORTABLE, TENSORRT_RTX, TENSORRT)}


def preferred(runtime: str) -> Policy:
    """Return the policy of a runtime that has rules of its own, else the portable one."""
    return POLICIES.get(runtime, PORTABLE)


def named(name: str) -> Policy:
    """Return the policy of this name. Raises: BadInput."""
    if name not in POLICIES:
        raise BadInput(f"there is no policy '{name}'", hint=f"choose one of {', '.join(POLICIES)}")
    return POLICIES[name]
