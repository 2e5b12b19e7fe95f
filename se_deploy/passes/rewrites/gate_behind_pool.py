"""Move the gate behind a pooling that follows, where the map is smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.passes.editing import put_before
from se_deploy.passes.parts import Scaled, is_nonnegative, scaled
from se_deploy.passes.registry import Refused, Scope, Tried, every_block, rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.se_blocks.types import SEBlock


@dataclass(frozen=True, slots=True)
class _Pooled:
    site: str
    block: Scaled
    pool: ir.Node

    @property
    def shape(self) -> tuple[object, ...]:
        """What the pooling reads."""
        return graph.dims(self.pool.inputs[0]) or ()


def _match(model: ir.Model, block: SEBlock) -> _Pooled | Refused:
    found = scaled(model, block)
    if isinstance(found, Refused):
        return found
    node = graph.sole_consumer(found.y)
    if node is None:
        return Refused("its output has several readers, or is an output of the graph")
    if node.op_type not in {"MaxPool", "AveragePool"}:
        return Refused(f"what reads its output is {node.op_type} '{node.name}', no pooling")
    if len(node.outputs) != 1:
        return Refused(f"MaxPool '{node.name}' behind it also gives indices")
    if node.op_type == "MaxPool" and not is_nonnegative(found.gate):
        return Refused("its gate may be negative, and a maximum behind it would become a minimum")
    return _Pooled(block.output, found, node)


@rewrite(
    name="gate-behind-pool",
    idea="gate behind the pooling",
    where=every_block,
    match=_match,
    after=("hoist-squeeze-1x1", "hoist-squeeze-kxk"),
    scope=Scope.LESS_WORK,
    tried=Tried(forms=(("squeeze-average-pool",),)),
)
def gate_behind_pool(model: ir.Model, found: _Pooled) -> None:  # noqa: ARG001 - one signature
    """Multiply by the gate behind the pooling that follows, on a quarter of the elements.

    Before: y = g x,  g: (N, C, 1, 1);  z = pool(y)
    After:  z = g pool(x)
    Proof:  in one channel g is one number for all positions. max(g a, g b) = g max(a, b) for g >= 0, also
            after rounding, which keeps the order; padding (minus infinity) is in no window alone. The mean
            is linear: mean(g a, g b) = g mean(a, b), with padded zeros too.
    Needs:  a gate that cannot be negative for MaxPool (sigmoid, hard sigmoid, ...), the pooling y's only
            reader, y no graph output. The block's output is then the pooling's.
    """
    node = found.pool
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    pooled = put_before(node, node.op_type, [found.block.data], **attributes)
    graph.replace(node.outputs[0], put_before(node, "Mul", [pooled, found.block.gate]))
