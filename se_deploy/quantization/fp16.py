"""FP16 or BF16 weights and activations, with the fewest casts that keep the graph's inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from se_deploy import graph, opsets
from se_deploy.errors import counted
from se_deploy.passes.canonical.fold import fold_affine
from se_deploy.quantization import fp16_ranges
from se_deploy.quantization.fp16_ranges import LARGEST, KeptFp32

if TYPE_CHECKING:
    from collections.abc import Mapping

    from se_deploy.protocols import Array
    from se_deploy.quantization.fp16_ranges import Ranges

SMALLEST_SCALE = fp16_ranges.SMALLEST
"""Quantization scales are floored here: those of weights that are all 0 would underflow, which TensorRT
refuses. No higher, because a floor changes every weight it applies to."""

_NAMED = 3  # of a list: enough to find them

_RESIZE_WITH_ROI = 11  # the operator set from which Resize has (X, roi, scales, sizes)

_FP32_OPS = frozenset({
    "CumSum", "NonMaxSuppression", "Range", "RandomNormal", "RandomUniform", "MelWeightMatrix", "DFT", "STFT",
    "HannWindow", "HammingWindow", "BlackmanWindow", "Multinomial", "Bernoulli", "DynamicQuantizeLinear",
    "MaxRoiPool", "RoiAlign", "ImageDecoder", "TfIdfVectorizer", "Celu", "IsInf",
})  # fmt: skip
"""Operators without an FP16 form in every operator set, or whose result is not what the FP32 one's is."""

_OF_SQUARES = frozenset({"MeanVarianceNormalization"})
"""By definition (x - E[x]) / (sqrt(E[x^2] - E[x]^2) + 1e-9): squares of what is not centred, whose difference
16 bits cannot tell, and a constant that FP16 has no number for. Other normalizations compute in FP32 by
themselves."""

_NOT_IN_BF16 = frozenset({"Mish", "ConvTranspose"})
"""Operators that TensorRT-RTX 1.7.1 refuses in bfloat16, of 55 tried; HardSwish is spelled anew."""

WITH_BODY = "what is inside of it is left as it is"


@dataclass(frozen=True, slots=True)
class _Narrow:
    """A 16-bit type that float32 is turned into."""

    dtype: ir.DataType
    numpy: np.dtype[Any]
    tag: str  # in the names of what is cast
    called: str  # in what is said
    keeps_range: bool  # whether it reaches as far as float32: then nothing overflows or underflows


_FP16 = _Narrow(ir.DataType.FLOAT16, np.dtype(np.float16), "fp16", "FP16", keeps_range=False)
_BF16 = _Narrow(ir.DataType.BFLOAT16, np.dtype(ml_dtypes.bfloat16), "bf16", "BF16", keeps_range=True)


@dataclass(frozen=True, slots=True)
class Fp16(graph.Rewrite):
    """The FP16 or BF16 graph; `warnings` name what it cannot hold."""

    warnings: tuple[str, ...] = ()
    kept: tuple[KeptFp32, ...] = ()  # nodes that compute in FP32, in the graph's order
    unchecked: tuple[str, ...] = ()  # what nobody knows of the ranges, in words


def to_fp16(model: ir.Model, *, io: Literal["fp32", "fp16"] = "fp32", ranges: Ranges | None = None) -> Fp16:
    """Turn every float32 tensor into float16, on a copy, keeping what must stay float32.

    With `io` "fp32" the graph's inputs and outputs keep their type behind one Cast each. In float32 stay,
    between casts, operators without an FP16 form (and those with a body of their own), and the makers and
    readers of what FP16 cannot hold: tensors beyond 65,504 by `ranges` (`fp16_ranges.measure`), constants
    below 6e-8 such as an eps, and sizes. Quantization scales are floored at the smallest number, bounds and
    masks beyond +-65504 become +-65504; that is a warning, and so are weights that underflow to 0.
    """
    losses = _Losses(_FP16)
    if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph):
        model = opsets.at_least(model, opsets.FP16_SCALES)
    # BatchNorm's statistics leave FP16's range where the convolution with them inside does not.
    folded = graph.rewrite(model, fold_affine)
    reasons = fp16_ranges.kept_fp32(folded.model, ranges)
    for node, reason in _staying(folded.model, _FP16).items():
        reasons.setdefault(node, reason)
    found = tuple(KeptFp32(str(n.name), reasons[n]) for n in folded.model.graph if n in reasons)
    unchecked = fp16_ranges.unmeasured(folded.model, ranges)
    near = fp16_ranges.close(folded.model, ranges)

    def fp32_to_fp16(copy: ir.Model) -> int:
        names = {kept.node for kept in found}
        return _convert(copy, io, losses, {node for node in copy.graph if node.name in names})

    done = graph.rewrite(folded.model, fp32_to_fp16)
    warnings = (*losses.warnings(), *_told(found), *_near(near))
    return Fp16(done.model, (*folded.counts, *done.counts), warnings, found, unchecked)


def to_bf16(model: ir.Model) -> Fp16:
    """Turn every float32 tensor into bfloat16, on a copy; inputs and outputs keep their type behind a Cast.

    Its range is float32's, so nothing overflows and no range is asked for; it has 8 bits where FP16 has 11.
    In float32 stay sizes, and operators that ONNX or TensorRT does not allow in bfloat16. The operator set
    becomes 22, the first in which convolutions and pools have it (ONNX, "Changelog").
    """
    folded = graph.rewrite(opsets.at_least(model, opsets.BF16), fold_affine, hard_swish_apart)
    reasons = fp16_ranges.kept_fp32(folded.model, None)
    of_sizes = {node for node, why in reasons.items() if why in {fp16_ranges.OF_SIZES, fp16_ranges.OF_FRAMES}}
    names = {str(node.name) for node in of_sizes}
    staying = _staying(folded.model, _BF16)
    for node in folded.model.graph:
        if node.op_type in _NOT_IN_BF16:
            staying.setdefault(node, f"TensorRT takes no {node.op_type} in BF16")
    found = tuple(KeptFp32(str(n.name), staying[n]) for n in folded.model.graph if n in staying)
    names |= {kept.node for kept in found}

    def fp32_to_bf16(copy: ir.Model) -> int:
        return _convert(copy, "fp32", _Losses(_BF16), {node for node in copy.graph if node.name in names})

    done = graph.rewrite(folded.model, fp32_to_bf16)
    return Fp16(done.model, (*folded.counts, *done.counts), tuple(_told(found)), found)


def hard_swish_apart(model: ir.Model) -> int:
    """Spell HardSwish by its definition: TensorRT takes that in bfloat16, and not the operator.

    Before: HardSwish(x)     After: Mul(x, HardSigmoid<alpha = 1/6, beta = 0.5>(x)), equal up to rounding.
    """
    found = [node for node in model.graph if node.op_type == "HardSwish"]
    for node in found:
        x = graph.input_of(node, 0)
        gate = ir.node("HardSigmoid", [x], {"alpha": 1 / 6, "beta": 0.5}, name=f"{node.name}_gate")
        product = ir.node("Mul", [x, gate.outputs[0]], name=node.name)
        for made in (gate, product):
            made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        model.graph.insert_before(node, [gate, product])
        graph.replace(node.outputs[0], product.outputs[0])
    return len(found)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _told(kept: tuple[KeptFp32, ...]) -> list[str]:
    """One warning for each of the first reasons, with the first nodes that it keeps in FP32."""
    nodes: dict[str, list[str]] = {}
    for one in kept:
        if one.reason not in {fp16_ranges.OF_SIZES, fp16_ranges.OF_FRAMES}:  # no number is in doubt
            nodes.setdefault(one.reason, []).append(one.node)
    told = [
        f"{_listed(names)} {'stays' if len(names) == 1 else 'stay'} in FP32: {reason}"
        for reason, names in list(nodes.items())[:_NAMED]
    ]
    rest = list(nodes.values())[_NAMED:]
    if rest:
        more = counted(sum(map(len, rest)), "more node", ("stays", "stay"))
        told.append(f"{more} in FP32, each with its reason in the result")
    return told


def _near(close: Mapping[str, float]) -> list[str]:
    if not close:
        return []
    name = max(close, key=close.__getitem__)
    most = f"'{name}' reaches {close[name]:,.6g} on what was measured"
    return [f"{counted(len(close), 'tensor', ('comes', 'come'))} close to FP16's end at 65,504: {most}"]


class _Losses:
    """Counts what the narrow type cannot hold while constants are converted."""

    def __init__(self, to: _Narrow) -> None:
        self.to = to
        self.over: list[str] = []
        self.under: list[str] = []

    def convert(self, name: str, array: Array, *, scale: bool) -> Array:
        if self.to.keeps_range:
            return array.astype(self.to.numpy)
        wide = np.maximum(array, np.float32(SMALLEST_SCALE)) if scale else array
        if (np.abs(wide) > LARGEST).any():
            self.over.append(name)
            wide = np.clip(wide, -LARGEST, LARGEST)
        half = wide.astype(self.to.numpy)
        if np.count_nonzero(half) < np.count_nonzero(wide):
            self.under.append(name)
        return half

    def warnings(self) -> list[str]:
        return [
            f"{counted(len(names), 'constant', ('holds', 'hold'))} values that FP16 {what}: {_listed(names)}"
            for names, what in (
                (self.over, "cannot reach; they became +-65504"),
                (self.under, "rounds to 0"),
            )
            if names
        ]


def _convert(model: ir.Model, io: str, losses: _Losses, wide: set[ir.Node]) -> int:
    to = losses.to
    nodes = list(model.graph)
    kept = wide | {node for node in nodes if _stays(model, node, to) is not None}
    kept |= {node for node in nodes if node.op_type == "Cast" and _ends_narrow(model, node, kept, io, to)}
    outputs = [(i, v) for i, v in enumerate(model.graph.outputs) if v.dtype == ir.DataType.FLOAT]
    wide_values = [
        value
        for value in (*model.graph.inputs, *(value for node in nodes for value in node.outputs))
        if value.dtype == ir.DataType.FLOAT
    ]  # what is narrow already is read as it is
    changed = 0
    for node in nodes:
        if node not in kept:
            changed += _retype(node, to)
    names = graph.value_names(model)
    for value in list(model.graph.initializers.values()):
        changed += _convert_constant(model, value, kept, losses, names)
    if io == "fp16":
        for value in model.graph.inputs:
            if value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(to.dtype)  # copies share types: never write into one
                changed += 1
    changed += _cast_edges(model, wide_values, kept, to)
    if io == "fp32":
        for i, value in outputs:
            if value.dtype == to.dtype:
                _restore_output(model, i, value, to)
                changed += 1
    return changed + _drop_idle_casts(model)


def _staying(model: ir.Model, to: _Narrow) -> dict[ir.Node, str]:
    """Return the nodes with float32 tensors that must compute in float32, whatever the numbers, and why."""
    found = {node: _stays(model, node, to) for node in model.graph if _wide(node)}
    return {node: reason for node, reason in found.items() if reason is not None}


def _wide(node: ir.Node) -> list[ir.Value]:
    return [value for value in _values(node) if value.dtype == ir.DataType.FLOAT]


def _stays(model: ir.Model, node: ir.Node, to: _Narrow) -> str | None:
    """Return why a node must compute in float32: no narrow form, or a body that this does not enter."""
    if node.domain not in {"", "ai.onnx"}:
        return f"'{node.domain}' is no domain of ONNX's own, and what it takes is not known"
    if _has_body(node):
        return WITH_BODY
    if any(value.type is not None and not fp16_ranges.is_tensor(value) for value in _values(node)):
        return "it reads or writes a sequence"
    if node.op_type in _OF_SQUARES:
        return f"{to.called} cannot hold the squares of {node.op_type}"
    if node.op_type in _FP32_OPS:
        return f"not every operator set and compiler has {node.op_type} in {to.called}"
    version = graph.opset(model)
    for value in _wide(node):
        own = [i for i, one in enumerate(node.inputs) if one is value and _fp32_slot(model, node, i)]
        if not own and not opsets.allows(node, version, to.dtype, value):
            return f"ONNX's operator set {version} has no {node.op_type} in {to.called}"
    return None


def _values(node: ir.Node) -> list[ir.Value]:
    return [value for value in (*node.inputs, *node.outputs) if value is not None]


def _has_body(node: ir.Node) -> bool:
    kinds = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _ends_narrow(model: ir.Model, cast: ir.Node, kept: set[ir.Node], io: str, to: _Narrow) -> bool:
    """Whether a Cast leads from the narrow type to where float32 is wanted, so that it stays as it is."""
    out = cast.outputs[0]
    if out.dtype != ir.DataType.FLOAT:
        return False
    uses = tuple(out.uses())
    if out.is_graph_output() and not uses:
        source = cast.inputs[0]
        return io == "fp32" and source is not None and source.dtype == to.dtype
    return bool(uses) and all(use.node in kept or _fp32_slot(model, use.node, use.idx) for use in uses)


def _fp32_slot(model: ir.Model, node: ir.Node, slot: int) -> bool:
    """Whether the specification wants float32 there: the scales (and the roi) of a Resize."""
    if node.op_type == "Upsample" or (node.op_type == "Resize" and graph.opset(model) < _RESIZE_WITH_ROI):
        return slot == 1
    return node.op_type == "Resize" and slot in {1, 2}


def _retype(node: ir.Node, to: _Narrow) -> int:
    """Let a node's float32 outputs, and what names float32 in its attributes, be of the narrow type."""
    changed = 0
    for value in node.outputs:
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(to.dtype)  # copies share types: never write into one
            changed += 1
    for name in ("to", "dtype", "output_dtype"):
        found = node.attributes.get(name)
        if found is not None and found.value == ir.DataType.FLOAT:
            node.attributes[name] = ir.AttrInt64(name, to.dtype)
            changed += 1
    value_attribute = node.attributes.get("value")
    filled = None if value_attribute is None else value_attribute.as_tensor()
    if node.op_type == "ConstantOfShape" and (filled is None or filled.dtype == ir.DataType.FLOAT):
        number = np.zeros(1, np.float32) if filled is None else filled.numpy()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(number.astype(to.numpy)))
        changed += 1
    return changed


def _convert_constant(
    model: ir.Model, value: ir.Value, kept: set[ir.Node], losses: _Losses, names: set[str]
) -> int:
    """Connect the readers of a float32 constant to a narrow one; those that stay float32 keep the old."""
    if value.dtype != ir.DataType.FLOAT or value.const_value is None:
        return 0
    uses = tuple(value.uses())
    converted = [
        use
        for use in uses
        if use.node.graph is model.graph
        and use.node not in kept
        and not _fp32_slot(model, use.node, use.idx)
        and use.node.op_type != "Cast"
    ]
    if not converted:
        return 0
    name = value.name or "constant"
    scale = any(use.node.op_type in {"QuantizeLinear", "DequantizeLinear"} and use.idx == 1 for use in uses)
    half = losses.convert(name, value.const_value.numpy(), scale=scale)
    if len(converted) == len(uses) and not (value.is_graph_input() or value.is_graph_output()):
        model.graph.initializers.pop(name)
        names.discard(name)
    new = graph.initializer(model, name, half, names)
    for use in converted:
        use.node.replace_input_with(use.idx, new)
    return 1


def _cast_edges(model: ir.Model, values: list[ir.Value], kept: set[ir.Node], to: _Narrow) -> int:
    """Cast where a reader wants the other of the two types, once per value for all such readers.

    `values`: those that were float32.
    """
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    changed = 0
    for value in values:
        for use in tuple(value.uses()):
            node = use.node
            if node.graph is not model.graph or node in kept or _fp32_slot(model, node, use.idx):
                wanted = ir.DataType.FLOAT
            else:
                wanted = to.dtype
            if value.dtype != wanted and node.op_type != "Cast":
                node.replace_input_with(use.idx, _cast(casts, value, wanted, to))
                changed += 1
    return changed


def _cast(
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value], value: ir.Value, wanted: ir.DataType, to: _Narrow
) -> ir.Value:
    """Cast `value` once for all its readers."""
    if (value, wanted) not in casts:
        node = ir.node("Cast", [value], {"to": wanted})
        out = node.outputs[0]
        out.type, out.shape = ir.TensorType(wanted), value.shape
        out.name = f"{value.name}_{to.tag if wanted == to.dtype else 'fp32'}"
        graph.insert_after(value, [node])
        casts[value, wanted] = out
    return casts[value, wanted]


def _restore_output(model: ir.Model, index: int, value: ir.Value, to: _Narrow) -> None:
    """Put the one Cast behind a graph output, which keeps its name and its float32."""
    node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
    out, name = node.outputs[0], value.name
    out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    value.name = f"{name}_{to.tag}"
    out.name = name
    model.graph.append(node)
    model.graph.outputs[index] = out


def _drop_idle_casts(model: ir.Model) -> int:
    """Remove each Cast whose input has its output's type already."""
    dropped = 0
    for node in [n for n in model.graph if n.op_type == "Cast"]:
        source, out = node.inputs[0], node.outputs[0]
        if source is None or source.dtype != out.dtype or out.is_graph_output() or not tuple(out.uses()):
            continue
        out.replace_all_uses_with(source)
        dropped += 1
    return dropped
