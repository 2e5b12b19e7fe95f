"""Read a graph once, front to back: which values are views of a tensor, which are vectors pooled from one.

One rule per operator says what its output is when its input is known; an operator without a rule gives a
value of its own. So a block is followed through any spelling, and nothing looks at a name.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.se_blocks import functions
from se_deploy.se_blocks.values import (
    Layer,
    Vector,
    View,
    locate,
    permuted,
    regroup,
    value_dims,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir as ir

    from se_deploy.se_blocks.values import Axis, Dim

_SAME = frozenset({"Identity", "Cast", "CastLike", "Dropout", "QuantizeLinear", "DequantizeLinear"})
_LAYOUT = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})
_REDUCE = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "max"}
_POOL = {"GlobalAveragePool": "mean", "GlobalMaxPool": "max", "AveragePool": "mean", "MaxPool": "max"}
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
_MOST_GUESSES = 4  # ways to read one value as a pooled vector


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one value."""

    view: View
    vectors: tuple[Vector, ...] = ()
    constant: bool = False  # does not depend on the graph's inputs
    of_shapes: bool = False  # depends on nothing but constants and shapes


class Reader:
    """The facts of every value of a graph, computed as its nodes are read in order."""

    def __init__(self, model: ir.Model) -> None:
        """Read the whole graph, the bodies of its control flow included."""
        self.facts: dict[ir.Value, Facts] = {}
        self._bases = itertools.count()
        self._twins: dict[object, ir.Value] = {}
        self._stands_for: dict[ir.Value, ir.Value] = {}
        for node in model.graph.all_nodes():
            self._read(node)

    def of(self, value: ir.Value) -> Facts:
        """Give the facts of a value; one that no node made is its own root."""
        known = self.facts.get(value)
        if known is None:
            constant = value.is_initializer() and not value.is_graph_input()
            known = self.facts[value] = Facts(self._root(value), constant=constant, of_shapes=constant)
        return known

    def _read(self, node: ir.Node) -> None:
        inputs = [self.of(v) for v in node.inputs if v is not None]
        constant = all(f.constant for f in inputs)
        of_shapes = node.op_type in {"Shape", "Size"} or all(f.of_shapes for f in inputs)
        for index, output in enumerate(node.outputs):
            twin = self._twin(node, index)
            if twin is not None:
                self._stands_for[output] = twin
            self.facts[output] = Facts(self._root(output), constant=constant, of_shapes=of_shapes)
        if (
            constant
            or of_shapes
            or not node.inputs
            or node.inputs[0] is None
            or node.domain not in {"", "ai.onnx"}
        ):
            return
        output = node.outputs[0]
        view = self._view(node) or self.facts[output].view
        vectors = _distinct(itertools.chain(self._vectors(node), self._pooled(node, view)))
        self.facts[output] = replace(self.facts[output], view=view, vectors=vectors)
        if node.op_type == "Split":
            for part in node.outputs[1:]:
                parts = tuple(self._part(node, vector, part) for vector in self.of(node.inputs[0]).vectors)
                self.facts[part] = replace(self.facts[part], vectors=_distinct(parts))

    def _root(self, value: ir.Value) -> View:
        shape = value_dims(value) or ()
        axes = tuple(frozenset[int]() if d == 1 and i else frozenset({i}) for i, d in enumerate(shape))
        return View(self._stands_for.get(value, value), axes)

    def _twin(self, node: ir.Node, index: int) -> ir.Value | None:
        """Give an earlier value that is computed in the same way, so that both are one root."""
        if node.op_type.startswith("Random") or len(tuple(node.attributes)) > 8:  # noqa: PLR2004  (bodies)
            return None
        key = (
            node.domain,
            node.op_type,
            index,
            tuple(sorted((name, str(attr.value)) for name, attr in node.attributes.items())),
            tuple(None if v is None else self._identity(v) for v in node.inputs),
        )
        twin = self._twins.setdefault(key, node.outputs[index])
        return None if twin is node.outputs[index] else self._stands_for.get(twin, twin)

    def _identity(self, value: ir.Value) -> object:
        if self.of(value).constant:
            array = graph.constant(value)
            if array is not None and array.size <= 16:  # noqa: PLR2004  (axes, starts, shapes)
                return (array.shape, array.dtype.str, array.tobytes())
        return id(self._stands_for.get(value, value))

    # ---- views: the same numbers elsewhere, or their mean over some axes

    def _view(self, node: ir.Node) -> View | None:
        source, output = node.inputs[0], node.outputs[0]
        if source is None:
            return None
        view, op = self.of(source).view, node.op_type
        if op in _SAME:
            return replace(view, nodes=(*view.nodes, node))
        before = self._dims(source)
        if before is None or len(view.axes) != len(before):
            return None
        if op in _LAYOUT:
            after = value_dims(output) or self._target(node, before)
            axes = _moved(node, view.axes, before, after)
            return None if axes is None else replace(view, axes=axes, nodes=(*view.nodes, node))
        gone = self._reduced_axes(node)
        if gone is None:
            return None
        stat = _REDUCE.get(op) or _POOL[op]
        names = [i for axis in gone for i in sorted(view.axes[axis])] or [-1]
        if 0 in names:  # a mean over the batch
            return None
        keep = op in _POOL or bool(graph.attribute(node, "keepdims", 1))
        axes = tuple(
            frozenset[int]() if i in gone else axis
            for i, axis in enumerate(view.axes)
            if keep or i not in gone
        )
        reduced = (*view.reduced, *((name, stat) for name in names))
        return replace(view, axes=axes, reduced=reduced, nodes=(*view.nodes, node))

    def _dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """Give a value's shape, from the tensor that it views where inference did not say."""
        if value is None or (shape := value_dims(value)) is not None:
            return None if value is None else shape
        view = self.of(value).view
        sizes = value_dims(view.root)
        if sizes is None:
            return None
        return tuple(_product([sizes[i] for i in sorted(axis)]) for axis in view.axes)

    def _target(self, node: ir.Node, before: Sequence[Dim]) -> tuple[Dim, ...] | None:
        """Give the shape that a Reshape asks for, computed from shapes; None where it is anything else."""
        sizes = self._sizes(node.inputs[1]) if node.op_type == "Reshape" and len(node.inputs) > 1 else None
        if sizes is None:
            return None
        return tuple(
            None if d == -1 else before[i] if d == 0 and i < len(before) else d for i, d in enumerate(sizes)
        )

    def _sizes(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """Evaluate arithmetic on shapes, where shape inference (before opset 13) does not."""
        array = graph.constant(value)
        if array is not None and array.dtype.kind == "i":
            return tuple(int(d) for d in array.reshape(-1))
        node = None if value is None else value.producer()
        if node is None:
            return None
        if node.op_type == "Shape":
            return self._dims(node.inputs[0])
        if node.op_type in {"Unsqueeze", "Squeeze", "Cast", "Identity"}:
            return self._sizes(node.inputs[0])
        parts = [self._sizes(v) for v in node.inputs]
        known = [part for part in parts if part is not None]
        if len(known) != len(parts):
            return None
        if node.op_type == "Concat":
            return tuple(itertools.chain.from_iterable(known))
        numbers = [d for part in known[1:] for d in part if isinstance(d, int)]
        if node.op_type == "Gather" and numbers:
            return tuple(known[0][i] for i in numbers if -len(known[0]) <= i < len(known[0]))
        if node.op_type == "Slice" and len(numbers) in {2, 3}:
            return known[0][numbers[0] : numbers[1]]
        return None

    def _reduced_axes(self, node: ir.Node) -> frozenset[int] | None:
        """Give the axes that a reduction or pool removes whole; None where it does anything else."""
        shape = self._dims(node.inputs[0])
        if shape is None:
            return None
        rank = len(shape)
        if node.op_type in _REDUCE:
            axes = _axes(node)
            if axes is None:
                return None
            return frozenset(a % rank for a in axes)
        if node.op_type in {"GlobalAveragePool", "GlobalMaxPool"}:
            return frozenset(range(2, rank))
        if node.op_type not in _POOL:
            return None
        kernel = graph.attribute(node, "kernel_shape")
        pads = graph.attribute(node, "pads", ())
        if not isinstance(kernel, (list, tuple)) or any(pads if isinstance(pads, (list, tuple)) else ()):
            return None
        if graph.attribute(node, "auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
            return None
        gone = set()
        for axis, extent in enumerate(kernel, start=2):
            if extent == shape[axis]:
                gone.add(axis)
            elif extent != 1 or (value_dims(node.outputs[0]) or shape)[axis] != shape[axis]:
                return None
        return frozenset(gone) or None

    def _pooled(self, node: ir.Node, view: View) -> Iterable[Vector]:
        """Read a view as a pooled vector, once for each tensor on the way that the squeeze may start at."""
        output = node.outputs[0]
        if node.op_type == "MatMul":
            yield from self._attention_pooled(node)
        if node.op_type not in _REDUCE and node.op_type not in _POOL:
            return
        wide = [(i, axis) for i, axis in enumerate(view.axes) if axis and axis != {0}]
        if not view.reduced or len(wide) != 1:
            return
        at, channel = wide[0]
        sizes = value_dims(view.root) or ()
        size = _product([sizes[i] for i in sorted(channel)])
        for start in range(len(view.reduced)):
            before, now = view.reduced[:start], view.reduced[start:]
            if before and before[-1][0] == now[0][0]:
                continue
            pools = frozenset(stat for axis, stat in now if axis not in self._branches(view, channel))
            yield Vector(
                source=View(view.root, (channel,), before),
                squeeze_input=view.root,
                squeeze_output=output,
                pools=pools or frozenset({"mean"}),
                size=size if isinstance(size, int) else None,
                axis=at,
                base=next(self._bases),
                function=functions.identity(),
                nodes=frozenset(view.nodes),
            )

    def _branches(self, view: View, channel: Axis) -> frozenset[int]:
        """Give the reduced axes in front of the channel, over which split attention sums its branches."""
        return frozenset(
            axis
            for axis, stat in view.reduced
            if stat == "sum" and 0 < axis < min(channel) and len(view.root.shape or ()) > 4  # noqa: PLR2004
        )

    def _attention_pooled(self, node: ir.Node) -> Iterable[Vector]:
        """Read MatMul(x: (N, 1, C, HW), softmax: (N, 1, HW, 1)) as a mean with learned weights."""
        x, weights = node.inputs[0], node.inputs[1]
        shape = value_dims(weights)
        if x is None or weights is None or not shape or shape[-1] != 1:
            return
        view, producer = self.of(x).view, self.of(weights).view.root.producer()
        wide = [axis for axis in view.axes if axis and axis != {0}]
        if producer is None or producer.op_type != "Softmax" or view.reduced or len(wide) != 2:  # noqa: PLR2004
            return
        size = (value_dims(x) or (None, None))[-2]
        yield Vector(
            source=View(view.root, (wide[0],)),
            squeeze_input=view.root,
            squeeze_output=node.outputs[0],
            pools=frozenset({"attention"}),
            size=size if isinstance(size, int) else None,
            axis=len(value_dims(node.outputs[0]) or ()) - 2 if value_dims(node.outputs[0]) else None,
            base=next(self._bases),
            function=functions.identity(),
            nodes=frozenset((*view.nodes, *self.of(weights).view.nodes, node)),
        )

    # ---- vectors: what becomes of a pooled vector

    def _vectors(self, node: ir.Node) -> Iterable[Vector]:
        for position, value in enumerate(node.inputs):
            for vector in self.of(value).vectors if value is not None else ():
                after = self._follow(node, position, vector)
                if after is not None:
                    yield replace(after, nodes=after.nodes | {node})
            if node.op_type not in functions.BINARY_OPS | {"MatMul", "Concat"}:
                return  # the other inputs are shapes, axes and weights

    def _follow(self, node: ir.Node, position: int, vector: Vector) -> Vector | None:
        op, shape = node.op_type, value_dims(node.outputs[0])
        if op in _SAME:
            return vector
        if op in _LAYOUT or op in {"Expand", "Tile"}:
            return _relaid(node, vector, shape)
        if op in _REDUCE or op in _POOL:
            return self._reduced(node, vector, shape)
        if op in functions.UNARY_OPS:
            if vector.function is None:
                return vector
            function = functions.unary(node, vector.function)
            return None if function is None else replace(vector, function=function)
        if op == "PRelu":
            return self._prelu(node, vector)
        if op in functions.BINARY_OPS:
            return self._binary(node, position, vector)
        if op in {"Conv", "Gemm", "MatMul"}:
            return self._learned(node, position, vector)
        if op == "BatchNormalization" or op in _NORMS:
            trait = frozenset() if op == "BatchNormalization" else frozenset({"norm"})
            return self._affine(vector, node.inputs[1:3], trait, anew=bool(trait))
        if op == "Softmax":
            return self._softmax(node, vector)
        if op in _PARTS:
            return self._part(node, vector, node.outputs[0])
        if op in {"Concat", "Pad"}:
            return self._joined(node, position, vector, shape)
        return None

    def _reduced(self, node: ir.Node, vector: Vector, shape: Sequence[Dim] | None) -> Vector | None:
        """Follow a vector through a reduction of axes of size one, or across its channels to one number."""
        gone = self._reduced_axes(node)
        before = value_dims(node.inputs[0])
        if gone is None or before is None:
            return None
        if vector.axis is not None and vector.axis not in gone:
            return replace(vector, axis=locate(shape, vector.size))
        if node.op_type == "ReduceMean" and vector.axis is not None and gone == {vector.axis}:
            return replace(vector, traits=vector.traits | {"scalar"})
        return None

    def _prelu(self, node: ir.Node, vector: Vector) -> Vector | None:
        slope = node.inputs[1]
        array = graph.constant(slope)
        if slope is None or array is None or vector.function is None:
            return None
        leaky = functions.leaky(vector.function, float(array.mean()))
        return replace(vector, function=leaky, weights=vector.weights | {slope})

    def _binary(self, node: ir.Node, position: int, vector: Vector) -> Vector | None:
        other = node.inputs[1 - position] if len(node.inputs) == 2 else None  # noqa: PLR2004
        if other is None:
            return None
        facts = self.of(other)
        if facts.constant:
            return self._with_constant(node, position, vector, other)
        if facts.of_shapes:
            divides = node.op_type == "Div" and position == 0 and vector.pools == {"sum"}
            return _as_mean(node, vector) if divides else None
        for partner in facts.vectors if position == 0 else ():
            if partner.source == vector.source:
                return self._with_vector(node, vector, partner)
        return None

    def _with_constant(self, node: ir.Node, position: int, vector: Vector, other: ir.Value) -> Vector | None:
        number, shape = graph.scalar(other), value_dims(other)
        only_channel = (
            vector.size == 1 and bool(shape) and node.op_type == "Add" and self._just_learned(vector)
        )
        if number is None or only_channel:
            sizes = [d for d in shape or () if d != 1]
            fits = shape is not None and (not sizes or (len(sizes) == 1 and vector.size in {None, sizes[0]}))
            if node.op_type in _AFFINE and fits and not (node.op_type == "Div" and position == 1):
                return self._affine(vector, [other], frozenset())
            return None
        if vector.pools == {"sum"} and not vector.layers and node.op_type in {"Div", "Mul"}:
            count = number if node.op_type == "Div" else 1 / number if number else math.inf
            if self._is_area(vector, count):
                return _as_mean(node, vector)
        if vector.function is None:
            return vector if node.op_type in _AFFINE else None
        constant = functions.identity() * 0 + number
        pair = (vector.function, constant) if position == 0 else (constant, vector.function)
        return replace(vector, function=functions.binary(node.op_type, *pair))

    @staticmethod
    def _just_learned(vector: Vector) -> bool:
        """Whether nothing has been done yet with what the last learned layer gave."""
        known = vector.function is not None and functions.is_identity(vector.function)
        return bool(vector.layers) and known

    def _is_area(self, vector: Vector, count: float) -> bool:
        shape = value_dims(vector.source.root) or ()
        channel = vector.source.axes[0]
        sizes = [d for i, d in enumerate(shape) if i and i not in channel]
        known = math.prod(d for d in sizes if isinstance(d, int))
        return math.isclose(count, known, rel_tol=1e-4) or any(not isinstance(d, int) for d in sizes)

    def _with_vector(self, node: ir.Node, vector: Vector, partner: Vector) -> Vector | None:
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
            return replace(
                joined, base=next(self._bases), function=functions.identity(), traits=frozenset(traits)
            )
        if vector.base == partner.base and vector.function is not None and partner.function is not None:
            function = functions.binary(node.op_type, vector.function, partner.function)
            return replace(joined, function=function)
        bounded = all(v.function is None or functions.is_bounded(v.function) for v in (vector, partner))
        return replace(
            joined,
            base=next(self._bases),
            function=None if bounded else functions.identity(),
            functions=(*vector.functions, vector.function),
            traits=joined.traits | {"merged"},
        )

    def _affine(
        self,
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
            return replace(vector, weights=vector.weights | used, traits=vector.traits | traits)
        return replace(
            vector,
            weights=vector.weights | used,
            traits=vector.traits | traits,
            base=next(self._bases),
            functions=vector.functions if known else (*vector.functions, vector.function),
            function=functions.identity(),
        )

    def _learned(self, node: ir.Node, position: int, vector: Vector) -> Vector | None:
        weight = node.inputs[1 - position if node.op_type == "MatMul" else 1]
        if weight is None or position > 1 or not self.of(weight).constant or "scalar" in vector.traits:
            return None
        shape = value_dims(weight)
        if shape is None or not all(isinstance(d, int) for d in shape):
            return None
        sizes = [d for d in shape if isinstance(d, int)]
        read = _conv if node.op_type == "Conv" else _gemm if node.op_type == "Gemm" else _matmul
        layer = read(node, position, vector, sizes)
        if layer is None:
            return None
        if layer.inputs == 0:  # a convolution along the channels
            return replace(
                self._affine(vector, node.inputs[1:3], frozenset({"eca"}), anew=True),
                layers=(*vector.layers, replace(layer, inputs=1)),
            )
        bias = node.inputs[2] if node.op_type != "MatMul" and len(node.inputs) > 2 else None  # noqa: PLR2004
        return replace(
            vector,
            size=layer.outputs,
            axis=_output_axis(node, vector, value_dims(node.outputs[0]), layer.outputs),
            base=next(self._bases),
            function=functions.identity(),
            functions=(*vector.functions, vector.function) if vector.layers else vector.functions,
            layers=(*vector.layers, layer),
            weights=vector.weights | {w for w in (weight, bias) if w is not None},
        )

    def _softmax(self, node: ir.Node, vector: Vector) -> Vector | None:
        shape = value_dims(node.inputs[0])
        axis = graph.attribute(node, "axis", -1)
        if shape is None or not isinstance(axis, int) or shape[axis] == 1:
            return None
        trait = "softmax2" if shape[axis] == 2 else "softmax"  # noqa: PLR2004
        return replace(
            vector,
            function=None,
            base=next(self._bases),
            functions=(*vector.functions, vector.function),
            traits=vector.traits | {trait, "softmax"},
        )

    def _part(self, node: ir.Node, vector: Vector, part: ir.Value) -> Vector:
        """Take some of a vector's numbers."""
        shape = value_dims(part) or ()
        numbers = [d for d in shape[1:] if isinstance(d, int)]
        size = math.prod(numbers) if len(numbers) == len(shape) - 1 else None
        if size == vector.size:
            return replace(vector, axis=locate(shape, size), nodes=vector.nodes | {node})
        return replace(
            vector,
            size=size,
            axis=locate(shape, size),
            base=next(self._bases),
            nodes=vector.nodes | {node},
            traits=vector.traits | {"part"},
        )

    def _joined(
        self, node: ir.Node, position: int, vector: Vector, shape: Sequence[Dim] | None
    ) -> Vector | None:
        """Concatenate vectors of one source (mean beside max, or a vector padded with its own ends)."""
        if position:
            return None
        numbers = [d for d in (shape or ())[1:] if isinstance(d, int)]
        size = math.prod(numbers) if shape and len(numbers) == len(shape) - 1 else None
        joined = replace(
            vector,
            size=size,
            axis=locate(shape, size),
            base=next(self._bases),
            traits=vector.traits | {"joined"},
        )
        if node.op_type == "Pad":
            return joined
        for value in node.inputs[1:]:
            partners = self.of(value).vectors if value is not None else ()
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


def _distinct(vectors: Iterable[Vector]) -> tuple[Vector, ...]:
    """Keep one guess for each source, the one with the most layers behind it first come."""
    kept: dict[object, Vector] = {}
    for vector in vectors:
        kept.setdefault((vector.source, vector.pools), vector)
    return tuple(itertools.islice(kept.values(), _MOST_GUESSES))


def _product(sizes: Sequence[Dim]) -> Dim:
    """Multiply sizes; one free size alone keeps its name."""
    if len(sizes) == 1:
        return sizes[0]
    numbers = [d for d in sizes if isinstance(d, int)]
    return math.prod(numbers) if len(numbers) == len(sizes) else None


def _as_mean(node: ir.Node, vector: Vector) -> Vector:
    """A sum over the map that `node` divides by its area."""
    return replace(vector, pools=frozenset({"mean"}), squeeze_output=node.outputs[0])


def _moved(
    node: ir.Node, axes: Sequence[Axis], before: Sequence[Dim], after: Sequence[Dim] | None
) -> tuple[Axis, ...] | None:
    if node.op_type == "Transpose":
        perm = _perm(node, len(axes))
        return tuple(axes[i] for i in perm)
    return None if after is None else regroup(axes, before, after)


def _perm(node: ir.Node, rank: int) -> tuple[int, ...]:
    perm = graph.attribute(node, "perm")
    return tuple(perm) if isinstance(perm, (list, tuple)) else tuple(reversed(range(rank)))


def _relaid(node: ir.Node, vector: Vector, shape: Sequence[Dim] | None) -> Vector | None:
    """Follow a vector through a change of layout, or through its broadcast to a map."""
    before = value_dims(node.inputs[0])
    if node.op_type in {"Expand", "Tile"}:
        if vector.axis is None or shape is None or before is None:
            return vector
        axis = vector.axis + len(shape) - len(before)
        return replace(vector, axis=axis) if shape[axis] == before[vector.axis] else None
    if node.op_type == "Transpose":
        rank = len(before or ())
        moved = permuted(vector.axis, _perm(node, rank)) if rank else None
        return replace(vector, axis=moved)
    numbers = [d for d in (shape or ())[1:] if isinstance(d, int)]
    whole = shape is not None and len(shape) > 1 and len(numbers) == len(shape) - 1
    if whole and vector.size is not None and math.prod(numbers) != vector.size:
        return None
    return replace(vector, axis=locate(shape, vector.size))


def _axes(node: ir.Node) -> list[int] | None:
    """Give a reduction's axes, from its attribute or input; None where they are computed or missing."""
    named = graph.attribute(node, "axes")
    if isinstance(named, (list, tuple)):
        return [int(a) for a in named]
    array = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if array is not None:
        return [int(a) for a in array.reshape(-1)]
    return None


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
        return Layer(node, "conv", 0, 1)
    return None


def _gemm(node: ir.Node, position: int, vector: Vector, weight: list[int]) -> Layer | None:
    if position or graph.attribute(node, "transA", 0) or len(weight) != 2:  # noqa: PLR2004
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
