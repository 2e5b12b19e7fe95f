"""Spell the addition at a block's end so that it happens inside a convolution.

A block's last convolution and the projection of its shortcut become one, with the gate in it or without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.passes.editing import put_before
from se_deploy.passes.registry import Refused, Tried, every, every_block, rewrite
from se_deploy.passes.rewrites import gate_into_previous as gate
from se_deploy.se_blocks.values import same, same_shape, value_dims

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.protocols import Array
    from se_deploy.se_blocks.types import SEBlock

_END = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class _Term:
    """W x + b over every `stride`-th pixel; b is (1, O, 1, 1) where it is computed, (O,) where constant."""

    x: ir.Value
    weights: ir.Value
    stride: int
    bias: Array | None
    computed_bias: ir.Value | None


@dataclass(frozen=True, slots=True)
class _Sum:
    site: str
    node: ir.Node
    terms: tuple[_Term, ...]

    @property
    def shape(self) -> tuple[object, ...]:
        """The sum's, and each term's weights and stride."""
        return (graph.dims(self.node.outputs[0]), *((graph.dims(t.weights), t.stride) for t in self.terms))


def _match(model: ir.Model, node: ir.Node) -> _Sum | Refused:  # noqa: ARG001 - one signature
    if node.op_type != "Add" or node.inputs[0] is node.inputs[1]:
        return Refused("it is no sum of two tensors")
    terms = []
    for value in node.inputs:
        term = _term(value)
        if isinstance(term, Refused):
            return term
        terms.append(term)
    if not same_shape(*node.inputs):
        return Refused("its terms are not known to be of one shape: one may be broadcast")
    return _Sum(str(node.outputs[0].name), node, tuple(terms))


def _term(value: ir.Value | None) -> _Term | Refused:
    node = value.producer() if value is not None else None
    if value is None or node is None or graph.sole_consumer(value) is None:
        return Refused(f"'{value.name if value is not None else ''}' is read elsewhere too, or is an input")
    if node.op_type == "Conv":
        return _convolved(node, None)
    if node.op_type == "Add":  # what the gate moved into a convolution leaves: conv(u, g W) + g b
        first, second = graph.input_of(node, 0), graph.input_of(node, 1)
        inner = first.producer()
        plain = inner is not None and inner.op_type == "Conv" and graph.sole_consumer(first) is node
        if inner is not None and plain and _is_column(second, inner):
            return _convolved(inner, second)
    return Refused(f"'{value.name}' is computed by {node.op_type}, not by a convolution")


def _is_column(value: ir.Value, conv: ir.Node) -> bool:
    """Whether a tensor added to a convolution's output leaves its shape as it is: (1 or N, 1 or O, 1, 1)."""
    column, x, weights = (value_dims(v) for v in (value, conv.inputs[0], conv.inputs[1]))
    if column is None or not x or not weights or column[2:] != (1, 1):
        return False
    return all(own == 1 or same(own, size) for own, size in zip(column, (x[0], weights[0]), strict=False))


def _convolved(node: ir.Node, computed_bias: ir.Value | None) -> _Term | Refused:
    weights = graph.input_of(node, 1)
    shape = graph.dims(weights)
    strides = graph.ints(node, "strides", (1, 1))
    if shape is None or None in shape or shape[2:] != (1, 1) or strides[0] != strides[1]:
        return Refused(f"Conv '{node.name}' is not 1x1, or its strides differ")
    if graph.attribute(node, "group", 1) != 1 or any(graph.ints(node, "pads", (0, 0, 0, 0))):
        return Refused(f"Conv '{node.name}' has groups or padding")
    source = weights.producer()
    if source is not None and source.op_type == "DequantizeLinear":
        return Refused(f"Conv '{node.name}' has quantized weights")
    given = node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004 - Conv(X, W, B)
    bias = graph.constant(given)
    if given is not None and bias is None:
        return Refused(f"Conv '{node.name}' has a bias that is computed in the graph")
    return _Term(graph.input_of(node, 0), weights, strides[0], bias, computed_bias)


@rewrite(
    name="add-as-concat",
    idea="two added 1x1 convolutions as one",
    where=every("Add"),
    match=_match,
    after=("gated-add-as-concat",),
    tried=Tried(turn=5),
)
def add_as_concat(model: ir.Model, found: _Sum) -> None:
    """Convolve a concatenation instead of adding two convolutions.

    Before: y = (W1 x1 + b1) + (W2 x2 + b2),  1x1, stride s1 and s2
    After:  y = [W1 W2] concat(x1', x2') + (b1 + b2),  x' = every s-th pixel of x
    Proof:  a 1x1 convolution with stride s reads pixels 0, s, 2 s, ...; over channels stacked on each other
            the sum over inputs is the sum of both sums.
    Needs:  1x1, no padding, one group, each convolution read by the addition only, outputs of one shape: the
            same numbers, and free sizes of one name. Any batch. The weights may be computed (the gate is in
            them), but not be quantized.
    """
    node, terms = found.node, found.terms
    stacked = put_before(node, "Concat", [_pixels(model, node, t) for t in terms], axis=1)
    arrays = [graph.constant(term.weights) for term in terms]
    constant = [array for array in arrays if array is not None]
    if len(constant) == len(terms):
        weights = graph.initializer(model, f"{found.site}/weights", np.concatenate(constant, axis=1))
    else:
        weights = put_before(node, "Concat", [term.weights for term in terms], axis=1)
    inputs = [stacked, weights]
    known = [term.bias.astype(np.float64) for term in terms if term.bias is not None]
    computed = [term.computed_bias for term in terms if term.computed_bias is not None]
    bias = np.sum(known, axis=0).astype(np.float32) if known else None
    if bias is not None and not computed:
        inputs.append(graph.initializer(model, f"{found.site}/bias", bias))
    y = put_before(node, "Conv", inputs, kernel_shape=[1, 1])
    for value in computed:
        total = value
        if bias is not None:
            column = graph.initializer(model, f"{found.site}/bias", bias.reshape(1, -1, 1, 1))
            total, bias = put_before(node, "Add", [value, column]), None
        y = put_before(node, "Add", [y, total])
    graph.replace(node.outputs[0], y)


@dataclass(frozen=True, slots=True)
class _GatedSum:
    site: str
    gated: gate.Gated
    node: ir.Node

    @property
    def shape(self) -> tuple[object, ...]:
        """The sum's."""
        return (graph.dims(self.node.outputs[0]),)


def _match_gated(model: ir.Model, block: SEBlock) -> _GatedSum | Refused:
    found = gate.match(model, block)
    if isinstance(found, Refused):
        return found
    scale = found.block.scale
    node = graph.sole_consumer(scale.outputs[0])
    if node is None or node.op_type != "Add":
        return Refused("its output is not read by an Add alone")
    first, second = node.inputs
    shortcut = second if first is scale.outputs[0] else first
    if first is second or not same_shape(first, second):
        return Refused("it is added to itself or to a tensor that is not known to be of its shape")
    for term in (_term(shortcut), _convolved(found.conv.node, None)):
        if isinstance(term, Refused):
            return term
    return _GatedSum(str(node.outputs[0].name), found, node)


@rewrite(
    name="gated-add-as-concat",
    idea="a gated 1x1 convolution and its shortcut's as one",
    where=every_block,
    match=_match_gated,
    after=("gate-into-next-batched",),
    tried=Tried(turn=6),
    run_time_weights=True,
)
def gated_add_as_concat(model: ir.Model, found: _GatedSum) -> None:
    """Move the gate into its convolution's weights and the shortcut's projection beside them.

    Before: y = g (W1 x1 + b1) + (W2 x2 + b2),  g: (1, O, 1, 1)
    After:  y = [g W1, W2] concat(x1', x2') + g b1 + b2
    Proof:  `gate_into_previous`, then `add_as_concat`.
    Needs:  what these two need: batch 1 for ever, a gate that does not wait for the convolution.
    """
    gate.gate_into_previous(model, found.gated)
    terms = _match(model, found.node)
    if isinstance(terms, Refused):
        raise ValueError(f"the sum '{found.site}' was matched and is none: {terms.reason}")  # noqa: TRY004 - no type error
    add_as_concat(model, terms)


def _pixels(model: ir.Model, anchor: ir.Node, term: _Term) -> ir.Value:
    """Every `stride`-th pixel of what a term reads."""
    if term.stride == 1:
        return term.x
    name = str(anchor.outputs[0].name)
    bounds = {"start": [0, 0], "end": [_END, _END], "axes": [2, 3], "step": [term.stride] * 2}
    given = [graph.initializer(model, f"{name}/{k}", np.array(v, np.int64)) for k, v in bounds.items()]
    return put_before(anchor, "Slice", [term.x, *given])
