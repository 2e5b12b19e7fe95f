"""What can be asked of `quantize`, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from se_deploy.quantization.mixed_precision import AccuracyGoal
from se_deploy.quantization.policies import PORTABLE, Policy

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from se_deploy.calibration import Method
    from se_deploy.quantization.fp16_ranges import KeptFp32
    from se_deploy.quantization.layers import FloatLayer
    from se_deploy.quantization.mixed_precision import TradeoffPoint
    from se_deploy.quantization.qdq import QuantParams
    from se_deploy.quantization.reconstruction import Reconstruction, Request
    from se_deploy.targets import Device


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """Every choice; the defaults are what the command line does."""

    policy: Policy = PORTABLE
    method: Method | None = None  # None: the best on samples held back
    base_precision: Literal["fp32", "fp16"] = "fp32"  # of everything that is not INT8
    hold_back: int = 4  # every so many samples evaluate what the others chose
    exclude_nodes: str | None = None  # a regular expression on node names: these stay in float
    offset_folding: bool = True
    channel_equalization: bool = True
    gptq: bool = True  # second-order weight rounding
    bias_correction: bool = True  # of each layer's mean error in the quantized network
    float_macs: float | None = None  # share of MACs that may stay in float, measured; None: the policy's
    goal: AccuracyGoal = field(default_factory=AccuracyGoal)  # reached by leaving more in float
    reconstruct: Request | None = None  # block-wise reconstruction, and what to spend on it
    device: Device | None = None  # by whose roofline they are cheap; None: a small Jetson


@dataclass(frozen=True, slots=True)
class QuantizationResult:
    """The INT8 graph and what was done to it."""

    model: ir.Model
    policy: str
    method: str
    samples: int
    quantized: tuple[str, ...]  # tensors that layers now read in INT8
    float_layers: tuple[FloatLayer, ...]
    sqnr_db: Mapping[str, float]  # per output, on the samples held back
    macs_int8_fraction: float  # of all layers with constant weights
    params: Mapping[str, QuantParams]  # per quantized tensor
    warnings: tuple[str, ...] = ()
    curve: tuple[TradeoffPoint, ...] = ()  # accuracy against cost; () where sensitivity was not measured
    kept_fp32: tuple[KeptFp32, ...] = ()  # what an FP16 base cannot hold
    unchecked: tuple[str, ...] = ()  # what nobody knows of FP16's ranges, in words
    reconstruction: Reconstruction | None = None  # None: not asked for
    rounding: str | None = None  # where `sqnr_db` is rounded to FP16, in words; None over an FP32 base
