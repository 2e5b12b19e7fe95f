"""Fold constant arithmetic into the constants and weights that it works on.

onnxscript's own folding (0.7.2) was tried: by the same reference it computes the same numbers, but it leaves
arithmetic on weights above 8,192 elements unless told an absolute size, where this bounds what comes out by
what goes in, and it simplifies nodes that are no constants too, under new names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from se_deploy import graph
from se_deploy.se_blocks.constants import compute, is_computable

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.protocols import Array

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_GROWTH = 2  # a folded constant may be this much larger than what it is made of,
_SMALL = 2**20  # or this many bytes: an Expand is better left to the run
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})


def fold_affine(model: ir.Model) -> int:
    """Fold BatchNormalization and Add, Sub, Mul or Div by a constant per channel into the convolution before.

    Before: Conv(x, w, b) -> y * s + t, s and t one number per channel (or one for all)
    After:  Conv(x, w * s, b * s + t), computed in double precision; equal up to its rounding.
    Needs: the convolution is read by this node only, in the same graph, all weights are constants, and what
    they become is finite in their type.
    """
    folded = 0
    for node in [node for node in model.graph.all_nodes() if node.op_type in _CONVOLUTIONS]:
        while (consumer := graph.sole_consumer(node.outputs[0])) is not None:
            affine = _affine(consumer, node)
            made = None if affine is None else _folded(node, affine)
            if made is None or not made.is_finite:
                break
            _write(model, node, made)
            graph.replace(consumer.outputs[0], node.outputs[0])
            if consumer.graph is not None:
                consumer.graph.remove(consumer, safe=True)
            folded += 1
    return folded


@dataclass(frozen=True, slots=True)
class NotFolded:
    """A node behind a convolution that stays, and why in a user's words."""

    node: str
    op_type: str
    reason: str


def overflowing(model: ir.Model) -> tuple[NotFolded, ...]:
    """The nodes that `fold_affine` leaves because the folded weights would be no finite numbers."""
    found = []
    for node in model.graph.all_nodes():
        consumer = graph.sole_consumer(node.outputs[0]) if node.op_type in _CONVOLUTIONS else None
        affine = None if consumer is None else _affine(consumer, node)
        made = None if affine is None else _folded(node, affine)
        if consumer is not None and made is not None and not made.is_finite:
            kind = f"{made.weights.dtype} weights of {node.op_type} '{node.name}'"
            reason = f"with it in them, the {kind} would be no finite numbers"
            found.append(NotFolded(consumer.name or "", consumer.op_type, reason))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Affine:
    """y * scale + shift, both (C,) in double precision."""

    scale: Array
    shift: Array


@dataclass(frozen=True, slots=True)
class _Folded:
    """A convolution's new weights and bias, in the type of its old ones."""

    weights: Array
    bias: Array

    @property
    def is_finite(self) -> bool:
        """Whether both hold numbers only."""
        return bool(np.isfinite(self.weights).all() and np.isfinite(self.bias).all())


def _affine(node: ir.Node, convolution: ir.Node) -> _Affine | None:
    """Read `node` as y * s + t per channel of the convolution's output y; None where it is none."""
    shape = graph.dims(convolution.outputs[0])
    channels = None if shape is None or len(shape) < 3 else shape[1]  # noqa: PLR2004  (N, C, L)
    if shape is None or channels is None or node.graph is not convolution.graph:
        return None  # a node in a branch computes where the convolution outside may not be wanted
    if node.op_type == "BatchNormalization":
        return _batch_norm(node)
    if node.op_type not in _ARITHMETIC:
        return None
    at = 0 if node.inputs[0] is convolution.outputs[0] else 1
    constant = graph.constant(node.inputs[1 - at])
    c = None if constant is None else _per_channel(constant, channels, len(shape))
    if c is None or (node.op_type == "Div" and at == 1):
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "Add":
        return _Affine(one, c)
    if node.op_type == "Sub":
        return _Affine(one, -c) if at == 0 else _Affine(-one, c)
    with np.errstate(divide="ignore"):  # a division by 0 is no finite weight
        return _Affine(c if node.op_type == "Mul" else 1 / c, zero)


def _per_channel(array: Array, channels: int, rank: int) -> Array | None:
    """A constant that broadcasts to (N, C, *) as one number per channel; None where it is none."""
    if array.dtype.kind != "f" or array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(d != 1 for i, d in enumerate(shape) if i != 1) or shape[1] not in {1, channels}:
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (channels,))


def _batch_norm(node: ir.Node) -> _Affine | None:
    arrays = [graph.constant(v) for v in node.inputs[1:5]]
    training = graph.attribute(node, "training_mode", 0)
    others_used = any(True for output in node.outputs[1:] for _ in output.uses())
    if training or others_used or any(a is None for a in arrays):
        return None
    gamma, beta, mean, var = (np.asarray(a, dtype=np.float64) for a in arrays)
    epsilon = cast("float", graph.attribute(node, "epsilon", 1e-5))
    with np.errstate(divide="ignore", invalid="ignore"):  # a variance of 0 or below is no finite weight
        scale = gamma / np.sqrt(var + epsilon)
        return _Affine(scale, beta - mean * scale)


def _folded(node: ir.Node, affine: _Affine) -> _Folded | None:
    """What the convolution's weights become; None where they are computed or no floating-point numbers."""
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004
    w, b = graph.constant(weight), graph.constant(bias)
    if w is None or w.dtype.kind != "f" or (bias is not None and b is None):
        return None
    double = w.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller asks whether it is finite
        if node.op_type == "Conv":
            scaled = double * affine.scale.reshape((-1,) + (1,) * (w.ndim - 1))
        else:  # ConvTranspose: (C in, C out / groups, k, k), groups one after the other along the first axis
            groups = cast("int", graph.attribute(node, "group", 1))
            grouped = double.reshape(groups, w.shape[0] // groups, *w.shape[1:])
            per_group = affine.scale.reshape((groups, 1, w.shape[1]) + (1,) * (w.ndim - 2))
            scaled = (grouped * per_group).reshape(w.shape)
        shifted = (0.0 if b is None else b.astype(np.float64)) * affine.scale + affine.shift
        return _Folded(scaled.astype(w.dtype), np.asarray(shifted).astype(w.dtype))


def _write(model: ir.Model, node: ir.Node, made: _Folded) -> None:
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004
    if weight is None:
        raise ValueError(f"'{node.name}' has no weights")
    if not np.array_equal(made.weights, _known(weight)):
        node.replace_input_with(1, graph.initializer(model, f"{weight.name}_folded", made.weights))
    added = graph.initializer(model, f"{bias.name if bias else weight.name}_bias", made.bias)
    if bias is None:
        node.resize_inputs(3)
    node.replace_input_with(2, added)


def _known(value: ir.Value) -> Array:
    array = graph.constant(value)
    if array is None:
        raise ValueError(f"'{value.name}' is no constant")
    return array


def fold_constants(model: ir.Model) -> int:
    """Compute what depends on constants alone, by ONNX's reference implementation.

    Before: Add(y, Reshape(bias: (C,), (1, C, 1, 1)))
    After:  Add(y, bias: (1, C, 1, 1)), the very numbers that the nodes give.
    Needs: an operator that the reference knows, and a result not much larger than what it is made of;
    Q/DQ nodes stay, since they keep integer weights small.
    """
    folded = 0
    opset = graph.opset(model)
    for node in list(model.graph.all_nodes()):
        arrays = _computed(node, opset)
        if arrays is None:
            continue
        for output, array in zip(node.outputs, arrays, strict=True):
            made = graph.initializer(model, output.name or "constant", array)
            output.replace_all_uses_with(made)
        folded += 1
    return folded


def _computed(node: ir.Node, opset: int) -> tuple[Array, ...] | None:
    constant = all(v is None or graph.constant(v) is not None for v in node.inputs)
    if not constant or not node.inputs or not is_computable(node):
        return None
    if any(output.is_graph_output() for output in node.outputs):
        return None
    given = [graph.constant(v) for v in node.inputs]
    made = compute(node, given, opset)
    if made is None:
        return None
    size = sum(array.nbytes for array in given if array is not None)
    return made if sum(array.nbytes for array in made) <= max(_GROWTH * size, _SMALL) else None
