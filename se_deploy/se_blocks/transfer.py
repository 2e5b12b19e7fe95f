"""What becomes of a pooled vector: one rule for each operator that a gate may be computed with."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.se_blocks import functions, sizes
from se_deploy.se_blocks.values import (
    LAYOUT,
    POOL,
    REDUCE,
    SAME,
    Layer,
    Vector,
    locate,
    permutation,
    permuted,
    same,
    value_dims,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir as ir

    from se_deploy.se_blocks.values import Analysis, Dim

_NORMS = frozenset(
    {
        "LayerNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "LpNormalization",
    }
)
_PARTS = frozenset({"Slice", "Split", "Gather"})
_AFFINE = frozenset({"Add", "Sub", "Mul", "Div"})
_OF_ONE_LAYER = frozenset({"part", "joined", "softmax", "softmax2"})
"""What says nothing of the gate once another learned layer has mixed the numbers."""


def followed(flow: Analysis, node: ir.Node) -> Iterable[Vector]:
    """What a node\'s output is for each guess at what its inputs are."""
    for position, value in enumerate(node.inputs):
        for vector in flow.of(value).vectors if value is not None else ():
            after = _follow(flow, node, position, vector)
            if after is not None:
                yield replace(after, nodes=after.nodes | {node})
        if node.op_type not in functions.BINARY_OPS | {"MatMul", "Concat"}:
            return  # the other inputs are shapes, axes and weights


def _follow(flow: Analysis, node: ir.Node, position: int, vector: Vector) -> Vector | None:
    op, shape = node.op_type, value_dims(node.outputs[0])
    if op in SAME:
        return vector
    if op in LAYOUT or op in {"Expand", "Tile"}:
        return _relaid(flow, node, vector, shape)
    if op in REDUCE or op in POOL:
        return _reduced(flow, node, vector, shape)
    if op in functions.UNARY_OPS:
        if vector.function is None:
            return vector
        function = functions.unary(node, vector.function, flow.constants.scalar)
        return None if function is None else replace(vector, function=function)
    if op == "PRelu":
        return _prelu(flow, node, vector)
    if op in functions.BINARY_OPS:
        return _binary(flow, node, position, vector)
    if op in {"Conv", "Gemm", "MatMul"}:
        return _learned(flow, node, position, vector)
    if op == "BatchNormalization" or op in _NORMS:
        trait = frozenset() if op == "BatchNormalization" else frozenset({"norm"})
        return _affine(flow, vector, node.inputs[1:3], trait, anew=bool(trait))
    if op == "Softmax":
        return _softmax(flow, node, vector)
    if op == "Resize":
        return _resized(flow, node, vector, shape)
    if op in _PARTS:
        return part_of(flow, node, vector, node.outputs[0])
    if op in {"Concat", "Pad"}:
        return _joined(flow, node, position, vector, shape)
    return None


def _reduced(flow: Analysis, node: ir.Node, vector: Vector, shape: Sequence[Dim] | None) -> Vector | None:
    """Follow a vector through a reduction of axes of size one, or across its channels to one number."""
    gone = flow.reduced_axes(node)
    if gone is None:
        return None
    if vector.axis is not None and vector.axis not in gone:
        return replace(vector, axis=locate(shape, vector.size))
    if node.op_type == "ReduceMean" and vector.axis is not None and gone == {vector.axis}:
        return replace(vector, traits=vector.traits | {"scalar"})
    return None


def _prelu(flow: Analysis, node: ir.Node, vector: Vector) -> Vector | None:
    slope = node.inputs[1]
    array = flow.constants.array(slope)
    if slope is None or array is None or vector.function is None:
        return None
    leaky = functions.leaky(vector.function, float(array.mean()))
    return replace(vector, function=leaky, weights=vector.weights | {slope})


def _binary(flow: Analysis, node: ir.Node, position: int, vector: Vector) -> Vector | None:
    other = node.inputs[1 - position] if len(node.inputs) == 2 else None  # noqa: PLR2004
    if other is None:
        return None
    info = flow.of(other)
    if info.constant:
        return _with_constant(flow, node, position, vector, other)
    if info.of_shapes:
        divides = node.op_type == "Div" and position == 0 and _is_plain_sum(vector)
        count, area = sizes.computed(flow, other), _area(vector)
        by_area = divides and count is not None and area is not None and count.equals(area)
        return _as_mean(node, vector) if by_area else None
    for partner in info.vectors if position == 0 else ():
        if partner.source == vector.source:
            return _with_vector(flow, node, vector, partner)
    return None


def _with_constant(
    flow: Analysis, node: ir.Node, position: int, vector: Vector, other: ir.Value
) -> Vector | None:
    number, shape = flow.constants.scalar(other), value_dims(other)
    only_channel = vector.size == 1 and bool(shape) and node.op_type == "Add" and _just_learned(vector)
    if number is None or only_channel:
        wide = [d for d in shape or () if d != 1]
        fits = shape is not None and (not wide or (len(wide) == 1 and vector.size in {None, wide[0]}))
        if node.op_type in _AFFINE and fits and not (node.op_type == "Div" and position == 1):
            return _affine(flow, vector, [other], frozenset())
        return None
    if _is_plain_sum(vector) and (node.op_type == "Mul" or (node.op_type == "Div" and position == 0)):
        count = number if node.op_type == "Div" else 1 / number if number else math.inf
        area = _area(vector)
        if area is not None and sizes.is_close(count, area):
            return _as_mean(node, vector)
    if vector.function is None:
        return vector if node.op_type in _AFFINE else None
    constant = functions.identity() * 0 + number
    pair = (vector.function, constant) if position == 0 else (constant, vector.function)
    return replace(vector, function=functions.binary(node.op_type, *pair))


def _just_learned(vector: Vector) -> bool:
    """Whether nothing has been done yet with what the last learned layer gave."""
    known = vector.function is not None and functions.is_identity(vector.function)
    return bool(vector.layers) and known


def _is_plain_sum(vector: Vector) -> bool:
    """Whether nothing was done yet with the sums over a map, so that a division makes means of them."""
    untouched = vector.function is not None and functions.is_identity(vector.function)
    anything = vector.layers or vector.functions or vector.weights or vector.traits
    return vector.pools == {"sum"} and untouched and not anything


def _area(vector: Vector) -> sizes.Product | None:
    """How many numbers of the source each number of a vector is pooled from."""
    source = vector.source
    rank = len(value_dims(source.root) or ())
    before = {axis for axis, _ in source.reduced}
    return sizes.count_of(source, [i for i in range(1, rank) if i not in source.axes[0] | before])


def _with_vector(flow: Analysis, node: ir.Node, vector: Vector, partner: Vector) -> Vector | None:
    """Combine two vectors of one source: one function of the same numbers, a norm, or two branches."""
    joined = replace(
        vector,
        size=vector.size if "scalar" not in vector.traits else partner.size,
        axis=vector.axis if "scalar" not in vector.traits else partner.axis,
        weights=vector.weights | partner.weights,
        nodes=vector.nodes | partner.nodes,
        pools=vector.pools | partner.pools,
        layers=tuple(dict.fromkeys((*vector.layers, *partner.layers))),
        traits=(vector.traits | partner.traits) - {"scalar"},
    )
    scalars = {"scalar" in vector.traits, "scalar" in partner.traits}
    if True in scalars:
        both = False not in scalars
        traits = joined.traits | ({"scalar"} if both else {"norm"})
        return replace(joined, base=flow.base(), function=functions.identity(), traits=frozenset(traits))
    if vector.base == partner.base and vector.function is not None and partner.function is not None:
        function = functions.binary(node.op_type, vector.function, partner.function)
        return replace(joined, function=function)
    bounded = all(v.function is None or functions.is_bounded(v.function) for v in (vector, partner))
    return replace(
        joined,
        base=flow.base(),
        function=None if bounded else functions.identity(),
        functions=(*vector.functions, None if node.op_type == "Mul" else vector.function),
        traits=joined.traits | {"merged"},
    )


def _affine(
    flow: Analysis,
    vector: Vector,
    weights: Sequence[ir.Value | None],
    traits: frozenset[str],
    *,
    anew: bool = False,
) -> Vector:
    """Scale or shift each channel by constants: BatchNorm, a bias, a gain per channel."""
    used = frozenset(w for w in weights if w is not None)
    known = vector.function is not None and functions.is_identity(vector.function)
    if known and not anew:
        return replace(vector, weights=vector.weights | used)
    return replace(
        vector,
        weights=vector.weights | used,
        traits=vector.traits | traits,
        base=flow.base(),
        functions=vector.functions if known else (*vector.functions, vector.function),
        function=functions.identity(),
    )


def _learned(flow: Analysis, node: ir.Node, position: int, vector: Vector) -> Vector | None:
    weight = node.inputs[1 - position if node.op_type == "MatMul" else 1]
    if weight is None or not flow.of(weight).constant or "scalar" in vector.traits:
        return None
    shape = value_dims(weight)
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    weight_dims = [d for d in shape if isinstance(d, int)]
    read = _conv if node.op_type == "Conv" else _gemm if node.op_type == "Gemm" else _matmul
    layer = read(node, position, vector, weight_dims)
    if layer is None:
        return None
    if layer.inputs == 0:  # a convolution along the channels
        after = value_dims(node.outputs[0])
        return replace(
            _affine(flow, vector, node.inputs[1:3], frozenset({"eca"}), anew=True),
            size=_per_image(after),
            axis=locate(after, _per_image(after)),
            layers=(*vector.layers, replace(layer, inputs=1)),
        )
    before = (*vector.functions, vector.function) if vector.layers else vector.functions
    bias = node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004
    return replace(
        vector,
        size=layer.outputs,
        axis=_output_axis(node, vector, value_dims(node.outputs[0]), layer.outputs),
        base=flow.base(),
        function=functions.identity(),
        functions=before,
        settled=len(before),
        layers=(*vector.layers, layer),
        traits=vector.traits - _OF_ONE_LAYER,
        weights=vector.weights | {w for w in (weight, bias) if w is not None},
    )


def _softmax(flow: Analysis, node: ir.Node, vector: Vector) -> Vector | None:
    shape = value_dims(node.inputs[0])
    axis = graph.attribute(node, "axis", -1)
    if shape is None or not isinstance(axis, int) or shape[axis] == 1:
        return None
    trait = "softmax2" if shape[axis] == 2 else "softmax"  # noqa: PLR2004
    return replace(
        vector,
        function=None,
        base=flow.base(),
        functions=(*vector.functions, vector.function),
        traits=vector.traits | {trait, "softmax"},
    )


def part_of(flow: Analysis, node: ir.Node, vector: Vector, part: ir.Value) -> Vector:
    """Take some of a vector's numbers, by a Slice, a Gather or a Split."""
    shape = value_dims(part)
    size = _per_image(shape)
    if same(size, vector.size):
        return replace(vector, axis=locate(shape, size), nodes=vector.nodes | {node})
    if size is not None and vector.size is not None and size > vector.size:
        return replace(_repeated(flow, vector, size, locate(shape, size)), nodes=vector.nodes | {node})
    return replace(
        vector,
        size=size,
        axis=locate(shape, size),
        base=flow.base(),
        nodes=vector.nodes | {node},
        traits=vector.traits | {"part"},
    )


def _repeated(flow: Analysis, vector: Vector, size: int, axis: int | None) -> Vector:
    """Let each number of a vector be that of several channels: one gate for a group of them."""
    return replace(vector, size=size, axis=axis, base=flow.base(), traits=vector.traits | {"grouped"})


def _resized(flow: Analysis, node: ir.Node, vector: Vector, shape: Sequence[Dim] | None) -> Vector | None:
    """Follow a vector through a Resize of its map of one position, or of its channels to their multiple."""
    before = value_dims(node.inputs[0])
    outside = graph.attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize"
    if before is None or shape is None or vector.axis is None or len(before) != len(shape) or outside:
        return None
    resized = {i for i in range(1, len(before)) if before[i] != shape[i]}
    if all(before[i] == 1 for i in resized):
        return vector
    old, new = before[vector.axis], shape[vector.axis]
    nearest = graph.attribute(node, "mode", "nearest") == "nearest"
    if resized != {vector.axis} or not nearest or not isinstance(old, int) or not isinstance(new, int):
        return None
    return None if new % old else _repeated(flow, vector, new, vector.axis)


def _joined(
    flow: Analysis, node: ir.Node, position: int, vector: Vector, shape: Sequence[Dim] | None
) -> Vector | None:
    """Concatenate vectors of one source (mean beside max, or a vector padded with its own ends)."""
    if position:
        return None
    size = _per_image(shape)
    joined = replace(
        vector,
        size=size,
        axis=locate(shape, size),
        base=flow.base(),
        traits=vector.traits | {"joined"},
    )
    if node.op_type == "Pad":
        return joined
    for value in node.inputs[1:]:
        partners = flow.of(value).vectors if value is not None else ()
        partner = next((p for p in partners if p.source == vector.source), None)
        if partner is None:
            return None
        joined = replace(
            joined,
            pools=joined.pools | partner.pools,
            nodes=joined.nodes | partner.nodes,
            weights=joined.weights | partner.weights,
            layers=tuple(dict.fromkeys((*joined.layers, *partner.layers))),
        )
    return joined


def _as_mean(node: ir.Node, vector: Vector) -> Vector:
    """A sum over the map that `node` divides by its area."""
    return replace(vector, pools=frozenset({"mean"}), squeeze_output=node.outputs[0])


def _per_image(shape: Sequence[Dim] | None) -> int | None:
    """Count the numbers behind the batch axis; None where a size is not known."""
    numbers = [d for d in (shape or ())[1:] if isinstance(d, int)]
    return math.prod(numbers) if shape and len(shape) > 1 and len(numbers) == len(shape) - 1 else None


def _relaid(flow: Analysis, node: ir.Node, vector: Vector, shape: Sequence[Dim] | None) -> Vector | None:
    """Follow a vector through a change of layout, or through its broadcast to a map."""
    before = value_dims(node.inputs[0])
    if node.op_type in {"Expand", "Tile"}:
        if vector.axis is None or shape is None or before is None:
            return vector
        axis = vector.axis + len(shape) - len(before)
        old, new = before[vector.axis], shape[axis]
        if node.op_type == "Tile" and isinstance(old, int) and isinstance(new, int) and old != new:
            return _repeated(flow, vector, new, axis)
        return replace(vector, axis=axis) if same(new, old) else None
    if node.op_type == "Transpose":
        order = permutation(node, len(before or ()))
        moved = permuted(vector.axis, order) if order else None
        wide = [axis for axis in order if axis and (before or ())[axis] != 1]
        if vector.axis is None and wide != sorted(wide):  # the channels lie along several axes
            return replace(vector, traits=vector.traits | {"shuffled"})
        return replace(vector, axis=moved)
    size = _per_image(shape)
    if size is not None and vector.size is not None and size != vector.size:
        at = locate(shape, size)
        return None if at is None or size % vector.size else _repeated(flow, vector, size, at)
    return replace(vector, axis=locate(shape, vector.size))


def _conv(node: ir.Node, _position: int, vector: Vector, weight: list[int]) -> Layer | None:
    """Read a Conv on a vector: 1x1 over the channels, or along them (then `inputs` is 0)."""
    group = graph.attribute(node, "group", 1)
    if not isinstance(group, int):
        return None
    inputs, outputs = weight[1] * group, weight[0]
    at_channels = vector.axis in {1, None} and vector.size in {inputs, None}
    pads = graph.attribute(node, "pads", ())
    padded = any(pads if isinstance(pads, (list, tuple)) else ())
    if at_channels and all(k == 1 for k in weight[2:]) and not padded:
        return Layer(node, "conv", inputs, outputs)
    if inputs == outputs == 1 and vector.axis != 1:
        return Layer(node, "conv", 0, _per_image(value_dims(node.outputs[0])) or 0)
    return None


def _gemm(node: ir.Node, _position: int, vector: Vector, weight: list[int]) -> Layer | None:
    if graph.attribute(node, "transA", 0) or len(weight) != 2:  # noqa: PLR2004
        return None
    outputs, inputs = weight if graph.attribute(node, "transB", 0) else weight[::-1]
    fits = vector.axis in {1, None} and vector.size in {inputs, None}
    return Layer(node, "linear", inputs, outputs) if fits else None


def _matmul(node: ir.Node, position: int, vector: Vector, weight: list[int]) -> Layer | None:
    shape = value_dims(node.inputs[position])
    if len(weight) < 2 or any(d != 1 for d in weight[:-2]):  # noqa: PLR2004
        return None
    inputs, outputs = (weight[-2], weight[-1]) if position == 0 else (weight[-1], weight[-2])
    at = vector.axis if shape is None else len(shape) - (1 if position == 0 else 2)
    fits = vector.axis in {at, None} and vector.size in {inputs, None}
    return Layer(node, "linear", inputs, outputs) if fits else None


def _output_axis(node: ir.Node, vector: Vector, shape: Sequence[Dim] | None, size: int) -> int | None:
    if node.op_type in {"Conv", "Gemm"}:
        return 1
    return vector.axis if vector.axis is not None else locate(shape, size)
