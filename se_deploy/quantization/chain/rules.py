"""What TensorRT's documentation says of Q/DQ, one rule for each thing that breaks a chain of INT8 layers."""

from __future__ import annotations

from dataclasses import dataclass

_DOCS = "https://docs.nvidia.com/deeplearning/tensorrt/latest"
_EXPLICIT = f"{_DOCS}/inference-library/quantized-types-explicit-quantization.html"
_FUSIONS = f"{_DOCS}/performance/fusion-catalog.html"
_TYPES = f"{_DOCS}/inference-library/work-quantized-types.html"
_QUANTIZE_LAYER = (
    "https://docs.nvidia.com/deeplearning/tensorrt/api/c_api/classnvinfer1_1_1_i_quantize_layer.html"
)

DOCUMENTED = "documented, not measured"
MEASURED = "measured on TensorRT-RTX 1.7"


@dataclass(frozen=True, slots=True)
class Rule:
    """One published rule and how sure it is."""

    name: str
    says: str
    source: str  # the page that it comes from
    evidence: str = DOCUMENTED


ZERO_POINT = Rule(
    "zero-point",
    "zero points must be 0: quantization is symmetric",
    f"{_TYPES} (Introduction to Quantization)",
    f"{MEASURED}: the file is refused",
)
INTEGER_TYPE = Rule(
    "integer-type",
    "INT8 is signed; of unsigned or wider integers TensorRT makes no INT8 layer",
    f"{_TYPES} (Supported Data Types)",
    f"{DOCUMENTED}; INT32 biases are refused ({MEASURED})",
)
INTEGER_OPERATOR = Rule(
    "integer-operator",
    "Q/DQ around float operators ask for integers; operators that compute with integers are not read",
    f"{_EXPLICIT} (ONNX Support)",
    f"{MEASURED}: the file is refused",
)
SCALE = Rule(
    "scale",
    "scales are constants and above 0",
    f"{_EXPLICIT} (ONNX Support)",
    f"{MEASURED}: a scale of 0 is refused",
)
PER_CHANNEL = Rule(
    "per-channel-activation",
    "activations are quantized per tensor, only weights per channel",
    f"{_EXPLICIT} (Q/DQ Layer-Placement Recommendations)",
)
WEIGHT_SCALES = Rule(
    "weight-scales",
    "weights have one scale, or one for each output channel",
    f"{_QUANTIZE_LAYER} (Detailed Description)",
    f"{MEASURED}: such a layer runs in float, one with blocks is refused",
)
HALF_QUANTIZED = Rule(
    "half-quantized",
    "a layer is INT8 where all its inputs are quantized, the weights too",
    f"{_EXPLICIT} (Q/DQ Layer-Placement Recommendations)",
)
BETWEEN = Rule(
    "between",
    "a quantizer fuses with the convolution whose activation it reads; a factor, a sum or a padding between "
    "the two makes another kernel of it, and the convolution writes floats; behind a pointwise kernel "
    "factors and sums cost nothing (measured on TensorRT-RTX 1.7)",
    f"{_EXPLICIT} (Q/DQ Layer-Placement Recommendations)",
)
NOT_FUSED = Rule(
    "not-fused",
    "a quantizer moves in front of an operator that commutes with it; others need a dequantizer in front "
    "and a quantizer behind, and then compute in INT8 themselves",
    f"{_EXPLICIT} (TensorRT Processing of Q/DQ Networks)",
)
RESIDUAL = Rule(
    "residual-in-float",
    "a sum is in the convolution's kernel, and that writes INT8 only where the other summand is INT8",
    f"{_EXPLICIT} (Q/DQ Layer-Placement Recommendations)",
)
EXTRA_PAIR = Rule(
    "extra-pair",
    "a pair of Q/DQ between a convolution and the sum behind it keeps the two apart",
    f"{_EXPLICIT} (Q/DQ Layer-Placement Recommendations)",
)
TWO_SCALES = Rule(
    "two-scales",
    "a quantizer is shared, or moved, only where the scales are equal",
    f"{_EXPLICIT} (Q/DQ Limitations)",
    f"{MEASURED}: one kernel more",
)
CONCAT = Rule(
    "concat",
    "an operator with INT8 inputs needs all of them and its output in INT8; a Concat computes nothing, so "
    "that their scales must be equal",
    f"{_EXPLICIT} (Q/DQ Layer-Placement Recommendations, Q/DQ Limitations)",
)
INSIDE_ACTIVATION = Rule(
    "inside-activation",
    "the output of a layer is not quantized in front of its activation, which then runs on its own",
    f"{_EXPLICIT} (Q/DQ Layer-Placement Recommendations)",
)
INSIDE_GATE = Rule(
    "inside-gate",
    "a pair of Q/DQ that does not surround an operator keeps its neighbours from fusing: place few",
    f"{_EXPLICIT} (Q/DQ Layer-Placement Recommendations)",
)

RULES = (
    ZERO_POINT, INTEGER_TYPE, INTEGER_OPERATOR, SCALE, PER_CHANNEL, WEIGHT_SCALES, HALF_QUANTIZED, BETWEEN,
    NOT_FUSED, RESIDUAL, EXTRA_PAIR, TWO_SCALES, CONCAT, INSIDE_ACTIVATION, INSIDE_GATE,
)  # fmt: skip
