"""What a network's SE blocks cost in a plan: their share, and the tax against the network without gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir
from msgspec import convert

from se_deploy import graph
from se_deploy.errors import UnsupportedGraph
from se_deploy.fusion.region import is_map
from se_deploy.plan import Kernel, Plan, PlanTensor
from se_deploy.schema import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.fusion.verdict import Verdict
    from se_deploy.se_blocks.types import SEBlock


@dataclass(frozen=True, slots=True)
class Totals:
    """A plan in numbers; bytes per image. `plain_*` are those of the network without gates."""

    kernels: int
    activation_bytes: int
    weight_bytes: int
    se_kernels: int
    se_activation_bytes: int
    plain_kernels: int | None = None
    plain_activation_bytes: int | None = None

    @property
    def se_share(self) -> float:
        """The SE blocks' part of all activation bytes."""
        return self.se_activation_bytes / self.activation_bytes if self.activation_bytes else 0.0

    @property
    def tax(self) -> float | None:
        """Activation bytes beyond the network without gates, over that network's: 0.17 is 17 % more."""
        if not self.plain_activation_bytes:
            return None
        return self.activation_bytes / self.plain_activation_bytes - 1


def totals(plan: Plan, judged: Sequence[Verdict], plain: Plan | None = None) -> Totals:
    """Add up `plan` and its verdicts; `plain`: the plan of `without_gates`, for the tax."""
    return Totals(
        plan.kernels,
        plan.activation_bytes,
        plan.weight_bytes,
        sum(verdict.kernels for verdict in judged),
        sum(verdict.activation_bytes for verdict in judged),
        None if plain is None else plain.kernels,
        None if plain is None else plain.activation_bytes,
    )


def without_gates(model: ir.Model, blocks: Sequence[SEBlock]) -> ir.Model:
    """Return a copy of `model` in which every block gives its input: y = x.

    Before: x -> squeeze -> ... -> gate; Mul(x, gate) -> y     After: x -> y
    Raises: UnsupportedGraph where a block's Mul is gone, as after the gate moved into weights.
    """
    copy = model.clone()
    nodes = {node.name: node for node in copy.graph.all_nodes()}  # a block may lie in a body of an If
    for block in blocks:
        scale = nodes.get(block.scale_node)
        if scale is None:
            raise UnsupportedGraph(
                f"the gate of block '{block.output}' cannot be taken out: '{block.scale_node}' is gone",
                hint="give the graph as it was before rewrites",
            )
        graph.replace(scale.outputs[0], _same(_scaled(scale, block), scale))
    return graph.tidy(copy)


def to_schema(
    plan: Plan,
    judged: Sequence[Verdict],
    precision: common.Precision,
    found: Totals | None = None,
) -> common.Plan:
    """Return the contract's PLAN. `precision`: what the network is in; `found`: what SE costs in it."""
    return common.Plan(
        runtime=plan.runtime,
        version=plan.version,
        target=plan.target,
        precision=precision,
        kernels=plan.kernels,
        activation_bytes=plan.activation_bytes,
        weight_bytes=plan.weight_bytes,
        layers=tuple(
            common.PlanLayer(
                name=layer.name,
                kind=layer.kind,
                inputs=tuple(_pair(tensor) for tensor in layer.inputs),
                outputs=tuple(_pair(tensor) for tensor in layer.outputs),
                onnx_nodes=layer.onnx_nodes,
            )
            for layer in plan.layers
        ),
        blocks=tuple(convert(verdict, common.PlanBlock, from_attributes=True) for verdict in judged),
        totals=None if found is None else _totals(found),
        shapes={name: tuple(dims) for name, dims in plan.shapes} or None,
    )


def _totals(found: Totals) -> common.Totals:
    bare = None
    if found.plain_kernels is not None:
        bare = common.WithoutSE(kernels=found.plain_kernels, activation_bytes=found.plain_activation_bytes)
    return common.Totals(
        kernels=found.kernels,
        activation_bytes=found.activation_bytes,
        weight_bytes=found.weight_bytes,
        se_kernels=found.se_kernels,
        se_bytes=found.se_activation_bytes,
        se_share=found.se_share,
        tax=found.tax,
        without_se=bare,
    )


def from_schema(plan: common.Plan) -> Plan:
    """Return the plan that `to_schema` wrote, as far as it did: tensors without names, constants left out."""
    return Plan(
        plan.runtime,
        plan.version,
        plan.target,
        tuple(
            Kernel(
                layer.name,
                layer.kind,
                tuple(PlanTensor("", *pair) for pair in layer.inputs),
                tuple(PlanTensor("", *pair) for pair in layer.outputs),
                layer.onnx_nodes,
            )
            for layer in plan.layers
        ),
    )


def _pair(tensor: PlanTensor) -> tuple[str, tuple[int, ...]]:
    return tensor.dtype, tensor.dims


def _scaled(scale: ir.Node, block: SEBlock) -> ir.Value:
    """Return the input of the scale that is not the gate."""
    inputs = [value for value in scale.inputs if value is not None and value.name != block.gate_output]
    return next((value for value in inputs if is_map(value)), inputs[0])


def _same(x: ir.Value, before: ir.Node) -> ir.Value:
    """Return a fresh value equal to `x`: an Identity, so that the block's output keeps its name."""
    identity = ir.node("Identity", [x])
    assert before.graph is not None  # noqa: S101 - it was found there
    before.graph.insert_before(before, identity)
    return identity.outputs[0]
