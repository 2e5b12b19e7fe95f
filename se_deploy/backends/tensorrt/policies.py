"""Where Q/DQ goes for TensorRT and TensorRT-RTX, each with what was measured."""

from __future__ import annotations

from se_deploy.backends.tensorrt import flavours
from se_deploy.quantization.policies import FLOAT_MACS, Policy

TENSORRT_RTX = Policy(
    flavours.TENSORRT_RTX.name,
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
    flavours.TENSORRT.name,
    "per-channel weights are TensorRT's own form; nothing may stand between a convolution and the next "
    "quantizer, so that it can emit INT8: equalization is in the weights, and an offset only behind a kernel "
    "that computes point by point",
    per_channel_weights=True,
    offset_folding="pointwise",
    channel_equalization=False,
    folded_equalization=True,
    quantize_residual=True,
    whole_chain=True,
    float_macs=FLOAT_MACS,
    base_precision="fp16",
)

POLICIES = {policy.name: policy for policy in (TENSORRT_RTX, TENSORRT)}
"""By the name of the flavour."""
