"""What FP16 cannot hold: tensors beyond 65,504, sums of squares and constants below 6e-8, sizes in float.

A tensor that overflows is inf from there on, an eps that underflows is 0 and what is divided by it NaN. The
nodes that make and read such a tensor stay in FP32, each with its reason.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from se_deploy import graph
from se_deploy.errors import counted
from se_deploy.passes.canonical.fold import fold_affine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from se_deploy.protocols import Array, Arrays, Runtime

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
"""Below it a number becomes 0, or this number itself: nothing of it is left."""

_CLOSE = 0.5
"""Of LARGEST: other data than what was measured may well reach twice as far."""

_CLAMPED = frozenset({"Clip", "Max", "Min", "Pad", "Where"})
"""Where a constant beyond +-65,504 means a bound or a mask, which +-65,504 is as well."""

_PASSES_ON = frozenset({
    "Abs", "Cast", "Expand", "Flatten", "Identity", "Neg", "Pow", "Reciprocal", "Reshape", "Slice", "Sqrt",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Behind these a number that FP16 cannot hold may still be one: what reads them stays in FP32, too."""

_GATHERS = frozenset({
    "Abs", "GlobalAveragePool", "Pow", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare",
    "Reshape", "Sqrt", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""What a variance or a norm is made of in front of its eps: a square is below 6e-8 from 2.4e-4 down."""

_LEARNED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})
"""They add what they read to much else: a tiny number that became 0 is lost in the sum."""

_NORMALIZES = frozenset(
    {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"}
)
"""They scale and shift by constants; a shift that became 0 is none, and their eps is an FP32 attribute."""

_ROOTS = frozenset({"GlobalLpPool", "LpNormalization", "LpPool", "ReduceL2"})
_LOGARITHMS = frozenset({"ReduceLogSum", "ReduceLogSumExp"})
"""Their result is the root or the logarithm of a sum that no tensor holds, so that none was measured."""

_AXES_AS_INPUT = 18  # the operator set from which ReduceL1 and ReduceL2 take them so

_SIZES = frozenset({"Shape", "Size"})
OF_SIZES = "it computes with sizes, and FP16 has no odd number above 2,048"

_PREPARES = frozenset({"Add", "Cast", "Div", "Mul", "Sub", "Transpose"})
OF_FRAMES = "it prepares uint8 frames, as exactly as that is done outside a graph"

_DATA_DEPENDENT = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""What comes of them may be empty, and an empty tensor has no largest value."""


@dataclass(frozen=True, slots=True)
class KeptFp32:
    """A node that stays in FP32, and why."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ranges:
    """The largest absolute value of each tensor, numbers only: inf and NaN are left out."""

    largest: Mapping[str, float]  # by tensor
    kinds: tuple[str, ...]  # what was fed, "noise", "extremes", "data"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # the largest batch's, by input
    norms: Mapping[str, float] = field(default_factory=dict)  # that a LpNormalization divides by, by output


def measure(
    model: ir.Model, batches: Iterable[Arrays], runtime: Runtime, *, kinds: Iterable[str] = ()
) -> Ranges:
    """Return the range of every FP32 tensor of `model`, as `to_fp16` finds it, over `batches`.

    `kinds` says in one word each what the batches are. Raises: BadInput where the graph refuses a batch.
    """
    folded = graph.rewrite(model, fold_affine).model
    inputs = [str(v.name) for v in folded.graph.inputs if v.dtype == ir.DataType.FLOAT]
    largest = dict.fromkeys(inputs, 0.0)
    norms: dict[str, float] = {}
    watched, divided_by = _watch(folded)
    if not watched:
        return Ranges({}, ())
    shapes: dict[str, tuple[int, ...]] = {}
    with runtime.open(folded) as session:
        for feeds in batches:
            for name, array in feeds.items():
                shapes[name] = max(shapes.get(name, ()), array.shape, key=math.prod)
            made = session.run(feeds)
            seen = {name: feeds[name] for name in inputs if name in feeds}
            seen |= {of: made[name] for name, of in watched.items()}
            for name, array in seen.items():
                largest[name] = max(largest.get(name, 0.0), _finite_max(array))
            for name, of in divided_by.items():
                norms[of] = max(norms.get(of, 0.0), _finite_max(made[name]))
    return Ranges(largest, tuple(dict.fromkeys(kinds)), shapes, norms)


def _watch(model: ir.Model) -> tuple[dict[str, str], dict[str, str]]:
    """Make the graph's outputs max|t| of each FP32 tensor t, and return t's name by theirs; so of norms.

    Reduced in the graph, no map is held to the end: all maps of a large network are gigabytes.
    """
    taken = {value.name for node in model.graph for value in node.outputs}
    made = [v for node in _of_known_extent(model) for v in node.outputs]
    tensors = [v for v in made if v.dtype == ir.DataType.FLOAT and is_tensor(v)]
    normalized = [v for v in tensors if (node := v.producer()) and node.op_type == "LpNormalization"]
    model.graph.outputs.clear()
    found: dict[str, str] = {}
    divided_by: dict[str, str] = {}
    watched = [
        *((value, value) for value in tensors),
        *((_norm(model, value), value) for value in normalized),
    ]
    for number, (value, of) in enumerate(watched):
        size = ir.node("Abs", [value])
        most = ir.node("ReduceMax", size.outputs, {"keepdims": 0})
        for node in (size, most):
            name = f"range_{number}_{node.op_type}"
            while name in taken:
                name += "_"
            taken.add(name)
            node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
        graph.insert_after(value, [size, most])
        most.outputs[0].shape = ir.Shape(())
        model.graph.outputs.append(most.outputs[0])
        (found if value is of else divided_by)[str(most.outputs[0].name)] = str(of.name)
    return found, divided_by


def _norm(model: ir.Model, normalized: ir.Value) -> ir.Value:
    """Compute what a LpNormalization divides by, which is none of its outputs."""
    node = normalized.producer()
    assert node is not None  # noqa: S101 - it made the value
    p, axis = graph.attribute(node, "p", 2), graph.attribute(node, "axis", -1)
    inputs, attributes = [graph.input_of(node, 0)], [ir.AttrInt64("keepdims", 0)]
    if graph.opset(model) < _AXES_AS_INPUT:
        attributes.append(ir.AttrInt64s("axes", [int(str(axis))]))
    else:
        inputs.append(graph.initializer(model, f"{normalized.name}_axes", np.array([axis], np.int64)))
    norm = ir.Node("", f"ReduceL{p}", inputs, attributes)
    norm.outputs[0].name = graph.fresh_name(f"{normalized.name}_norm", graph.value_names(model))
    norm.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_after(normalized, [norm])
    return norm.outputs[0]


def _of_known_extent(model: ir.Model) -> list[ir.Node]:
    unknown: set[ir.Node] = set()
    for node in model.graph:
        if node.op_type in _DATA_DEPENDENT or any(n in unknown for n in node.predecessors()):
            unknown.add(node)
    return [node for node in model.graph if node not in unknown]


def _finite_max(array: Array) -> float:
    numbers = np.abs(array[np.isfinite(array)])
    return float(numbers.max()) if numbers.size else 0.0


def kept_fp32(model: ir.Model, ranges: Ranges | None) -> dict[ir.Node, str]:
    """Return the nodes of an FP32 graph whose results or inputs FP16 cannot hold, each with its reason.

    Ranges that are not known are taken for harmless; constants need none.
    """
    found: dict[ir.Node, str] = {}
    for node in _sizes(model):
        found[node] = OF_SIZES
    for node in _preparing(model):
        found[node] = OF_FRAMES
    for node in model.graph:
        for value in node.inputs:
            reason = _constant(node, value)
            if reason is not None:
                for one in (node, *_neighbours(node)):
                    found.setdefault(one, reason)
    if ranges is not None:
        _by_range(model, ranges, found)
    return found


def close(model: ir.Model, ranges: Ranges | None) -> dict[str, float]:
    """Return the tensors that stay within FP16 but come near its end, with their largest value."""
    if ranges is None:
        return {}
    names = [str(v.name) for v in _tensors(model)]
    found = {name: ranges.largest[name] for name in names if name in ranges.largest}
    return {name: most for name, most in found.items() if _CLOSE * LARGEST < most <= LARGEST}


def unmeasured(model: ir.Model, ranges: Ranges | None) -> tuple[str, ...]:
    """Return what could not be checked, in words; empty where every tensor was seen on real data."""
    names = [str(v.name) for v in _tensors(model)]
    if ranges is None:
        return (f"whether one of {counted(len(names), 'tensor')} overflows FP16: no range was measured",)
    found = []
    blind = [name for name in names if name not in ranges.largest]
    if blind:
        found.append(f"whether '{blind[0]}' overflows FP16 ({counted(len(blind), 'tensor')} without a range)")
    if "data" not in ranges.kinds:
        fed = " and ".join(ranges.kinds) or "made-up input"
        free = [v for v in model.graph.inputs if None in (graph.dims(v) or ())[1:]]
        sizes = [f"'{v.name}' {'x'.join(map(str, ranges.shapes.get(str(v.name), ())))}" for v in free]
        of = f" of {', '.join(sizes)}" if sizes else ""  # a sum grows with the size that it is taken over
        found.append(f"whether a tensor overflows FP16 on real data: ranges were measured on {fed}{of} only")
    return tuple(found)


def _tensors(model: ir.Model) -> list[ir.Value]:
    values = (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))
    return [value for value in values if value.dtype == ir.DataType.FLOAT and is_tensor(value)]


def is_tensor(value: ir.Value) -> bool:
    """Whether a value is one tensor, and not a sequence of them, which has their element type too."""
    return isinstance(value.type, ir.TensorType)


def _by_range(model: ir.Model, ranges: Ranges, found: dict[ir.Node, str]) -> None:
    for value in _tensors(model):
        most = ranges.largest.get(str(value.name), 0.0)
        if most > LARGEST:
            reason = f"'{value.name}' reaches {most:,.6g}, and FP16 ends at 65,504"
        elif 0 < most < SMALLEST:
            reason = f"'{value.name}' is at most {most:.2g}, which is 0 in FP16"
        else:
            continue
        readers = [use.node for use in value.uses()]
        if most < SMALLEST:
            readers = [node for node in readers if node.op_type not in _LEARNED]
        for node in (value.producer(), *readers):
            if node is not None:
                found.setdefault(node, reason)

    for node in model.graph:
        name = str(node.outputs[0].name)
        most = ranges.largest.get(name, 0.0)
        inside = _sum_within(node, ranges.norms.get(name, most)) if most <= LARGEST else 0.0
        if inside > LARGEST:
            found.setdefault(node, f"{node.op_type} '{name}' sums up to more than 65,504, where FP16 ends")
        elif 0 < inside < SMALLEST:
            found.setdefault(node, f"{node.op_type} '{name}' sums up to {inside:.2g}, which is 0 in FP16")


def _sum_within(node: ir.Node, most: float) -> float:
    """Return how far the sum inside of an operator reaches, or somewhat beyond LARGEST; 0 for others.

    `most`: how far its result reaches, or what it divides by.
    """
    if node.op_type == "Mean":
        return most * len(node.inputs)
    if node.op_type in _ROOTS and most > 0:
        logarithm = float(str(graph.attribute(node, "p", 2))) * math.log(most)
    elif node.op_type in _LOGARITHMS:
        logarithm = most
    else:
        return 0.0
    return math.exp(min(logarithm, math.log(LARGEST) + 1))


def _constant(node: ir.Node, value: ir.Value | None) -> str | None:
    """Return what FP16 would make of a constant that it cannot hold; None where it can, or does no harm."""
    array = graph.constant(value)
    if value is None or array is None or value.dtype != ir.DataType.FLOAT:
        return None
    if node.op_type in {"QuantizeLinear", "DequantizeLinear", "Resize", "Upsample", "Cast"}:
        return None  # scales are floored, and those of a Resize stay FP32
    what, most = f"the constant '{value.name}'", _finite_max(array)
    if most > LARGEST and node.op_type not in _CLAMPED:
        return f"{what} reaches {most:,.6g}, and FP16 ends at 65,504"
    if 0 < most < SMALLEST and node.op_type not in _LEARNED | _NORMALIZES:
        return f"{what} is {most:.2g}, which is 0 in FP16"
    return None


def _neighbours(node: ir.Node) -> list[ir.Node]:
    """Return what reads a node's result as far as it matters, and the sum of squares that it reads."""

    def below(one: ir.Node) -> Iterable[ir.Node]:
        passes = one is node or one.op_type in _PASSES_ON
        return [n for n in one.successors() if n.op_type not in _LEARNED] if passes else []

    def above(one: ir.Node) -> Iterable[ir.Node]:
        return [n for n in one.predecessors() if n.op_type in _GATHERS or _is_square(n)]

    return [*_reached(node, below), *_reached(node, above)]


def _is_square(node: ir.Node) -> bool:
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]


def _reached(start: ir.Node, step: Callable[[ir.Node], Iterable[ir.Node]]) -> list[ir.Node]:
    found: dict[ir.Node, None] = {}
    waiting = deque([start])
    while waiting:
        for node in step(waiting.popleft()):
            if node not in found and node is not start:
                found[node] = None
                waiting.append(node)
    return list(found)


def _preparing(model: ir.Model) -> list[ir.Node]:
    """Return the nodes that cast, turn and normalize a uint8 input, up to the first that does more."""
    made = {value for value in model.graph.inputs if value.dtype == ir.DataType.UINT8}
    found = []
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        rest = [value for value in inputs if value not in made]
        constants = all(graph.constant(value) is not None for value in rest)
        if node.op_type in _PREPARES and len(rest) < len(inputs) and constants:
            made.update(node.outputs)
            found.append(node)
    return found


def _sizes(model: ir.Model) -> list[ir.Node]:
    """Return the nodes whose FP32 results are computed from shapes and constants alone."""
    computed: set[ir.Value] = set()
    found = []
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        from_sizes = [value for value in inputs if value in computed]
        rest = [value for value in inputs if value not in computed]
        constants = all(graph.constant(value) is not None for value in rest)
        if node.op_type in _SIZES or (from_sizes and constants):
            computed.update(node.outputs)
            if any(value.dtype == ir.DataType.FLOAT for value in node.outputs):
                found.append(node)
    return found
