"""Read a graph once, front to back: which values are views of a tensor, which are vectors pooled from one.

One rule per operator says what its output is when its input is known; an operator without a rule gives a
value of its own. So a block is followed through any spelling, and nothing looks at a name.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from se_deploy import graph
from se_deploy.se_blocks import functions, transfer
from se_deploy.se_blocks.constants import Constants
from se_deploy.se_blocks.values import (
    LAYOUT,
    POOL,
    REDUCE,
    SAME,
    ValueInfo,
    Vector,
    View,
    permutation,
    regroup,
    value_dims,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from se_deploy.se_blocks.values import Axis, Dim

_SMALL = 16  # numbers in a constant that may be axes, a slice's start, a shape
_MOST_GUESSES = 4  # ways to read one value as a pooled vector


class Dataflow:
    """The dataflow analysis: what is known of every value, computed as a graph's nodes are read in order."""

    def __init__(self, model: ir.Model) -> None:
        """Read the whole graph, the bodies of its control flow included."""
        self.infos: dict[ir.Value, ValueInfo] = {}
        self.constants = Constants(graph.opset(model))
        self._bases = itertools.count()
        self._twins: dict[object, ir.Value] = {}
        self._stands_for: dict[ir.Value, ir.Value] = {}
        self._read_all(model.graph)

    def of(self, value: ir.Value) -> ValueInfo:
        """What is known of a value; one that no node made is its own root."""
        known = self.infos.get(value)
        if known is None:
            constant = value.is_initializer() and not value.is_graph_input()
            known = self.infos[value] = ValueInfo(self._root(value), constant=constant, of_shapes=constant)
        return known

    def base(self) -> int:
        """A mark for numbers that are no scalar function of any before them."""
        return next(self._bases)

    def _read_all(self, nodes: Iterable[ir.Node]) -> None:
        for node in nodes:
            bodies = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
            for body in bodies:
                self._read_all(body)
            if node.op_type == "If":
                self._read_if(node, bodies)
            else:
                self._read(node)

    def _read_if(self, node: ir.Node, bodies: Sequence[ir.Graph]) -> None:
        """Let an If be what its first branch is that is known: TorchScript asks so before it squeezes."""
        for index, output in enumerate(node.outputs):
            branches = [self.of(body.outputs[index]) for body in bodies]
            vectors_of = [f for f in branches if f.vectors]
            known = (vectors_of or [f for f in branches if f.view.nodes] or [ValueInfo(self._root(output))])[
                0
            ]
            self.infos[output] = ValueInfo(
                view=replace(known.view, nodes=(*known.view.nodes, node)),
                vectors=tuple(replace(v, nodes=v.nodes | {node}) for v in known.vectors),
                constant=all(f.constant for f in branches),
                of_shapes=all(f.of_shapes for f in branches),
            )

    def _read(self, node: ir.Node) -> None:
        inputs = [self.of(v) for v in node.inputs if v is not None]
        constant = all(f.constant for f in inputs)
        of_shapes = node.op_type in {"Shape", "Size"} or all(f.of_shapes for f in inputs)
        for index, output in enumerate(node.outputs):
            twin = self._twin(node, index)
            if twin is not None:
                self._stands_for[output] = twin
            self.infos[output] = ValueInfo(self._root(output), constant=constant, of_shapes=of_shapes)
        if (
            constant
            or of_shapes
            or not node.inputs
            or node.inputs[0] is None
            or node.domain not in {"", "ai.onnx"}
        ):
            return
        output = node.outputs[0]
        view = self._view(node) or self.infos[output].view
        guesses = _distinct(itertools.chain(transfer.followed(self, node), self._pooled(node, view)))
        self.infos[output] = replace(self.infos[output], view=view, vectors=guesses)
        if node.op_type == "Split":
            for part in node.outputs[1:]:
                parts = tuple(
                    transfer.part_of(self, node, vector, part) for vector in self.of(node.inputs[0]).vectors
                )
                self.infos[part] = replace(self.infos[part], vectors=_distinct(parts))

    def _root(self, value: ir.Value) -> View:
        shape = value_dims(value) or ()
        axes = tuple(frozenset[int]() if d == 1 and i else frozenset({i}) for i, d in enumerate(shape))
        return View(self._stands_for.get(value, value), axes)

    def _twin(self, node: ir.Node, index: int) -> ir.Value | None:
        """An earlier value that is computed in the same way, so that both are one root."""
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
        if self.of(value).constant and (value.const_value is None or value.const_value.size <= _SMALL):
            array = graph.constant(value)
            if array is not None:
                return (array.shape, array.dtype.str, array.tobytes())
        return id(self._stands_for.get(value, value))

    # ---- views: the same numbers elsewhere, or their mean over some axes

    def _view(self, node: ir.Node) -> View | None:
        source, output = node.inputs[0], node.outputs[0]
        if source is None:
            return None
        view, op = self.of(source).view, node.op_type
        if op in SAME:
            return replace(view, nodes=(*view.nodes, node))
        before = self.dims(source)
        if before is None or len(view.axes) != len(before):
            return None
        if op in LAYOUT:
            after = value_dims(output) or self._target(node, before)
            axes = _moved(node, view.axes, before, after)
            return None if axes is None else replace(view, axes=axes, nodes=(*view.nodes, node))
        gone = self.reduced_axes(node)
        if gone is None:
            return None
        stat = REDUCE.get(op) or POOL[op]
        names = [i for axis in gone for i in sorted(view.axes[axis])] or [-1]
        if 0 in names:  # a mean over the batch
            return None
        keep = op in POOL or bool(graph.attribute(node, "keepdims", 1))
        axes = tuple(
            frozenset[int]() if i in gone else axis
            for i, axis in enumerate(view.axes)
            if keep or i not in gone
        )
        reduced = (*view.reduced, *((name, stat) for name in names))
        return replace(view, axes=axes, reduced=reduced, nodes=(*view.nodes, node))

    def dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """A value's shape, from the tensor that it views where inference did not say."""
        if value is None or (shape := value_dims(value)) is not None:
            return None if value is None else shape
        view = self.of(value).view
        sizes = value_dims(view.root)
        if sizes is None:
            return None
        return tuple(_product([sizes[i] for i in sorted(axis)]) for axis in view.axes)

    def _target(self, node: ir.Node, before: Sequence[Dim]) -> tuple[Dim, ...] | None:
        """The shape that a Reshape asks for, computed from shapes; None where it is anything else."""
        sizes = self._sizes(node.inputs[1]) if node.op_type == "Reshape" and len(node.inputs) > 1 else None
        if sizes is None:
            return None
        return tuple(
            None if d == -1 else before[i] if d == 0 and i < len(before) else d for i, d in enumerate(sizes)
        )

    def _sizes(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """Evaluate arithmetic on shapes, where shape inference (before opset 13) does not."""
        array = self.constants.array(value)
        if array is not None and array.dtype.kind == "i":
            return tuple(int(d) for d in array.reshape(-1))
        node = None if value is None else value.producer()
        if node is None:
            return None
        if node.op_type == "Shape":
            return self.dims(node.inputs[0])
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
            inside = all(-len(known[0]) <= i < len(known[0]) for i in numbers)
            return tuple(known[0][i] for i in numbers) if inside else None
        if node.op_type == "Slice" and len(numbers) in {2, 3}:
            return known[0][numbers[0] : numbers[1]]
        return None

    def reduced_axes(self, node: ir.Node) -> frozenset[int] | None:
        """The axes that a reduction or pool removes whole; None where it does anything else."""
        shape = self.dims(node.inputs[0])
        if shape is None:
            return None
        rank = len(shape)
        if node.op_type in REDUCE:
            axes = self._axes(node)
            if axes is None or not rank:  # nothing to reduce in a scalar
                return None
            return frozenset(a % rank for a in axes)
        if node.op_type in {"GlobalAveragePool", "GlobalMaxPool"}:
            return frozenset(range(2, rank))
        if node.op_type not in POOL:
            return None
        kernel = graph.attribute(node, "kernel_shape")
        pads = graph.attribute(node, "pads", ())
        if not isinstance(kernel, (list, tuple)) or any(pads if isinstance(pads, (list, tuple)) else ()):
            return None
        if graph.attribute(node, "auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
            return None
        gone = set()
        strides = graph.ints(node, "strides", (1,) * len(kernel))
        for axis, (extent, stride) in enumerate(zip(kernel, strides, strict=True), start=2):
            if extent == shape[axis]:
                gone.add(axis)
            elif extent != 1 or stride != 1:  # by the stride: of a free size it is not known what is left
                return None
        return frozenset(gone) or None

    def _axes(self, node: ir.Node) -> list[int] | None:
        """A reduction's axes, from its attribute or input; None where they are computed or missing."""
        named = graph.attribute(node, "axes")
        if isinstance(named, (list, tuple)):
            return [int(a) for a in named]
        array = self.constants.array(node.inputs[1]) if len(node.inputs) > 1 else None
        if array is not None:
            return [int(a) for a in array.reshape(-1)]
        return None

    def _pooled(self, node: ir.Node, view: View) -> Iterable[Vector]:
        """Read a view as a pooled vector, once for each tensor on the way that the squeeze may start at."""
        output = node.outputs[0]
        if node.op_type == "MatMul":
            yield from self._attention_pooled(node)
        if node.op_type not in REDUCE and node.op_type not in POOL:
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
                squeeze_output=output,
                pools=pools or frozenset({"mean"}),
                size=size if isinstance(size, int) else None,
                axis=at,
                base=self.base(),
                function=functions.identity(),
                nodes=frozenset(view.nodes),
            )

    def _branches(self, view: View, channel: Axis) -> frozenset[int]:
        """The reduced axes in front of the channel, over which split attention sums its branches."""
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
            squeeze_output=node.outputs[0],
            pools=frozenset({"attention"}),
            size=size if isinstance(size, int) else None,
            axis=len(value_dims(node.outputs[0]) or ()) - 2 if value_dims(node.outputs[0]) else None,
            base=self.base(),
            function=functions.identity(),
            nodes=frozenset((*view.nodes, *self.of(weights).view.nodes, node)),
        )


def _distinct(guesses: Iterable[Vector]) -> tuple[Vector, ...]:
    """Keep one guess for each source, the one with the most layers behind it first come."""
    kept: dict[object, Vector] = {}
    for vector in guesses:
        kept.setdefault((vector.source, vector.pools), vector)
    return tuple(itertools.islice(kept.values(), _MOST_GUESSES))


def _product(sizes: Sequence[Dim]) -> Dim:
    """Multiply sizes; one free size alone keeps its name."""
    if len(sizes) == 1:
        return sizes[0]
    numbers = [d for d in sizes if isinstance(d, int)]
    return math.prod(numbers) if len(numbers) == len(sizes) else None


def _moved(
    node: ir.Node, axes: Sequence[Axis], before: Sequence[Dim], after: Sequence[Dim] | None
) -> tuple[Axis, ...] | None:
    if node.op_type == "Transpose":
        perm = permutation(node, len(axes))
        return tuple(axes[i] for i in perm)
    return None if after is None else regroup(axes, before, after)
