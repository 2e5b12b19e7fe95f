"""What can be asked of `quantize`, what each target wants, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from se_deploy.quantization.goals import Goal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from se_deploy.calibration import Method
    from se_deploy.quantization.goals import Point
    from se_deploy.quantization.layers import Kept
    from se_deploy.quantization.qdq import Grid
    from se_deploy.targets import Device


@dataclass(frozen=True, slots=True)
class Policy:
    """Where Q/DQ goes and in what form; `reason` is what was measured."""

    name: str
    reason: str
    per_channel: bool  # weights: a scale per output channel, or one
    depthwise: bool
    depthwise_reason: str = ""
    shift: Literal["all", "unpadded", "none"] = "all"  # of ranges that do not lie around 0
    divide: bool = True  # each channel by its size
    residual: bool = False  # the tensor that a residual Add reads is quantized once for all its readers
    float_macs: float = 0.0  # share of MACs that may stay in float, spent where INT8 hurts most


POLICIES = {
    "portable": Policy(
        "portable",
        "symmetric, per-channel weights, every layer outside the SE gates: the most accurate form that "
        "every runtime reads",
        per_channel=True,
        depthwise=True,
        float_macs=0.045,
    ),
    "tensorrt-rtx": Policy(
        "tensorrt-rtx",
        "per-channel weights make TensorRT-RTX write FP32 between layers (0.50 against 0.30 MB per image "
        "and convolution), and it copies a depthwise input to four times its channels",
        per_channel=False,
        depthwise=False,
        depthwise_reason="TensorRT-RTX copies its input to four times its channels",
        shift="unpadded",
        residual=True,
    ),
    "tensorrt": Policy(
        "tensorrt",
        "per-channel weights are TensorRT's own form; nothing may stand between a layer and the next "
        "quantizer, so that it can emit INT8",
        per_channel=True,
        depthwise=True,
        shift="none",
        divide=False,
        residual=True,
        float_macs=0.045,
    ),
}


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """Every choice; the defaults are what the command line does."""

    policy: str = "portable"  # a key of POLICIES
    method: Method | None = None  # None: the best on samples held back
    precision: Literal["fp32", "fp16"] = "fp32"  # of everything that is not INT8
    hold_back: int = 4  # every so many samples judge what the others chose
    exclude_nodes: str | None = None  # a regular expression on node names: these are kept
    shift: bool = True
    divide: bool = True
    reconstruct: bool = True  # second-order weight rounding
    keep: float | None = None  # share of MACs that may stay in float, by measurement; None: the policy's
    goal: Goal = field(default_factory=Goal)  # reached by leaving more layers in float, the cheapest first
    device: Device | None = None  # by whose roofline they are cheap; None: a small Jetson


@dataclass(frozen=True, slots=True)
class Quantized:
    """The INT8 graph and what was done to it."""

    model: ir.Model
    policy: str
    method: str
    samples: int
    quantized: tuple[str, ...]  # tensors that layers now read in INT8
    kept: tuple[Kept, ...]
    sqnr_db: Mapping[str, float]  # per output, on the samples held back
    macs_int8_fraction: float  # of all layers with constant weights
    grids: Mapping[str, Grid]  # per quantized tensor
    warnings: tuple[str, ...] = ()
    curve: tuple[Point, ...] = ()  # accuracy against cost; () where sensitivity was not measured
