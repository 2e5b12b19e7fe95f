"""Remove hidden units that are the same for every input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.passes.convolution import Conv, bottleneck
from se_deploy.passes.editing import put_before
from se_deploy.passes.parts import is_nonnegative
from se_deploy.passes.registry import Refused, Scope, Tried, every_block, rewrite

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from se_deploy.protocols import Array
    from se_deploy.se_blocks.types import SEBlock


def _sigmoid(h: Array) -> Array:
    y: Array = np.exp(-np.logaddexp(0, -h))  # 1 / (1 + exp(-h)) overflows where h is far below 0
    return y


def _silu(h: Array) -> Array:
    return h * _sigmoid(h)


_SILU = "silu"  # Mul(h, Sigmoid(h))

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "Relu": lambda h: np.maximum(h, 0),
    "Sigmoid": _sigmoid,
    "Tanh": np.tanh,
    "HardSwish": lambda h: h * np.clip(h / 6 + 0.5, 0, 1),
    _SILU: _silu,
}


@dataclass(frozen=True, slots=True)
class _Idle:
    site: str
    fc1: Conv
    fc2: Conv
    alive: Array  # (R,) bool
    constant: Array  # (R,) what an idle unit gives, 0 for those whose value is never read

    @property
    def shape(self) -> tuple[object, ...]:
        """Its weights are a block's own: no two are alike."""
        return (self.site,)

    @property
    def bias(self) -> Array:
        """The last layer's bias with what the idle units always give in it, (C,)."""
        given = self.fc2.weights[:, :, 0, 0].astype(np.float64) @ self.constant
        bias = given if self.fc2.bias is None else self.fc2.bias.astype(np.float64) + given
        with np.errstate(over="ignore"):  # the matcher asks whether it is finite
            return np.asarray(bias).astype(self.fc2.weights.dtype)


def removable(model: ir.Model, block: SEBlock) -> tuple[int, ...]:
    """The numbers, from 0, of a canonical block's hidden units that `prune_hidden_units` would remove."""
    found = _match(model, block)
    return () if isinstance(found, Refused) else tuple(np.flatnonzero(~found.alive).tolist())


def _match(model: ir.Model, block: SEBlock) -> _Idle | Refused:
    found = bottleneck(model, block)
    if isinstance(found, Refused):
        return found
    fc1, fc2 = found.fc1, found.fc2
    activation = _activation(fc1.y, fc2.x)
    if activation is None:
        return Refused(
            "between its layers is no activation of those whose value is known, or it is read twice"
        )
    if graph.sole_consumer(fc2.y) is None:
        return Refused("its last layer is read more than once")
    rows, columns = fc1.weights[:, :, 0, 0], fc2.weights[:, :, 0, 0]
    bias = np.zeros(len(rows), rows.dtype) if fc1.bias is None else fc1.bias
    unread, fixed = ~columns.any(axis=0), ~rows.any(axis=1)
    never = np.zeros(len(rows), bool)
    if activation == "Relu" and is_nonnegative(found.parts.read):
        never = (rows <= 0).all(axis=1) & (bias <= 0)
    constant = np.where(fixed & ~unread, _ACTIVATIONS[activation](bias.astype(np.float64)), 0)
    alive = ~(unread | fixed | never)
    if not alive.any():
        alive[0] = True  # a layer of no units is no layer; one that stays counts itself
        constant[0] = 0
    if alive.all():
        return Refused("all of its hidden units depend on the input")
    idle = _Idle(block.output, fc1, fc2, alive, constant)
    if not np.isfinite(idle.bias).all():
        return Refused("what its idle units always give would overflow in the bias of its last layer")
    return idle


def _activation(hidden: ir.Value, read: ir.Value) -> str | None:
    """Name the elementwise function between the layers; None where it is another or is read elsewhere."""
    nodes = [use.node for use in hidden.uses()]
    producer = read.producer()
    if producer is None or graph.sole_consumer(read) is None:
        return None
    if nodes == [producer] and producer.op_type in _ACTIVATIONS:
        return producer.op_type
    gates = [node for node in nodes if node.op_type == "Sigmoid"]
    if len(nodes) == 2 and len(gates) == 1 and producer in nodes and producer.op_type == "Mul":  # noqa: PLR2004 - h and its gate
        inputs = set(producer.inputs)
        return _SILU if inputs == {hidden, gates[0].outputs[0]} else None
    return None


@rewrite(
    name="dead-hidden-units",
    idea="prune hidden units that never change",
    where=every_block,
    match=_match,
    after=("drop-whole-slice",),
    scope=Scope.PORTABLE,
    tried=Tried(first=True),
)
def prune_hidden_units(model: ir.Model, found: _Idle) -> None:
    """Drop hidden units whose value is never read or never changes.

    Before: e = W2 act(W1 s + b1) + b2,  W1: (R, C, 1, 1), W2: (C, R, 1, 1)
    After:  the same with R' < R units; what a removed unit always gives is in b2
    Proof:  unit r gives act(W1[r] s + b1[r]) to column r of W2. It is idle where the column is 0 (its value
            is multiplied by 0), where W1[r] is 0 (its value is act(b1[r]), so W2[:, r] act(b1[r]) is a
            constant of b2), and where the activation is Relu, s is a mean of numbers >= 0, and W1[r] and
            b1[r] are all <= 0 (its value is 0).
    Needs:  two 1x1 layers with constant weights and one group, between them an elementwise activation that
            nothing else reads. Only what is provable from the weights: no data is looked at. One unit stays.
    """
    fc1, fc2, name = found.fc1, found.fc2, found.site
    fc1.node.replace_input_with(1, graph.initializer(model, f"{name}/alive1", fc1.weights[found.alive]))
    if fc1.bias is not None:
        fc1.node.replace_input_with(2, graph.initializer(model, f"{name}/bias1", fc1.bias[found.alive]))
    weights = [
        fc2.x,
        graph.initializer(model, f"{name}/alive2", fc2.weights[:, found.alive]),
        graph.initializer(model, f"{name}/bias2", found.bias),
    ]
    graph.replace(fc2.y, put_before(fc2.node, "Conv", weights))
    _forget_shapes(fc1.y, fc2.x)


def _forget_shapes(first: ir.Value, last: ir.Value) -> None:
    """Let the shapes between the layers be inferred again: they hold R."""
    front = [first]
    while front:
        value = front.pop()
        value.shape = None
        if value is not last:
            front += [out for use in value.uses() for out in use.node.outputs]
