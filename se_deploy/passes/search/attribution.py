"""Divide a plan among the blocks of its network, so that one plan judges one form of every block at once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import graph

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir

    from se_deploy.plan import Kernel, Plan
    from se_deploy.se_blocks.types import SEBlock

_FOLLOWING = frozenset({"Add", "Relu", "Clip", "Sigmoid", "Mul", "HardSwish", "LeakyRelu", "PRelu"})


@dataclass(frozen=True, slots=True)
class Share:
    """What the kernels of one block's neighbourhood cost."""

    value: float
    kernels: int


class CostAttribution:
    """Which block each node is near to: from behind the block before it to what reads its output.

    A form of a block changes kernels near it only, up to layouts at the borders: the sum of shares over
    blocks is an estimate that the search checks with a plan of the whole.
    """

    def __init__(self, model: ir.Model, blocks: Sequence[SEBlock]) -> None:
        """`model`: canonical, nodes in topological order, and its census."""
        order = {node: i for i, node in enumerate(model.graph)}
        known = graph.values(model)
        ends = []
        for block in blocks:
            y = known.get(block.output)
            node = y.producer() if y is not None else None
            if node is not None:
                ends.append((_end(node, order), block.output))
        ends.sort()
        self._outputs = tuple(output for _, output in ends)
        self._place: dict[str, int] = {}
        for node, position in order.items():
            index = sum(end < position for end, _ in ends)
            place = min(index, len(ends) - 1)
            self._place[str(node.name)] = place
            self._place.update({str(value.name): place for value in node.outputs})

    def shares(self, plan: Plan, cost: Callable[[Plan], float]) -> Mapping[str, Share]:
        """Each block's share by its output; kernels that name no node go with the one before them."""
        layers: list[list[Kernel]] = [[] for _ in self._outputs]
        place = 0
        for layer in plan.layers:
            places = [p for name in layer.onnx_nodes if (p := self._find(name)) is not None]
            place = max(places, default=place)
            if layers:
                layers[place].append(layer)
        parts = [dataclasses.replace(plan, layers=tuple(kernels)) for kernels in layers]
        found = (Share(cost(part), part.kernels) for part in parts)
        return dict(zip(self._outputs, found, strict=True))

    def _find(self, name: str) -> int | None:
        """A node by name; a rewritten one is named `operator:tensor/operator` after the tensor."""
        if name in self._place:
            return self._place[name]
        tensor = name.partition(":")[2]
        while tensor and tensor not in self._place:
            tensor = tensor.rpartition("/")[0]
        return self._place.get(tensor)


def _end(node: ir.Node, order: Mapping[ir.Node, int]) -> int:
    """The position of the last node near a block's scale: its readers, and what they are fused with."""
    end = order[node]
    readers = [use.node for use in node.outputs[0].uses()]
    front = readers if len(readers) == 1 else []
    while front:
        reader = front.pop()
        end = max(end, order[reader])
        after = graph.sole_consumer(reader.outputs[0])
        if after is not None and after.op_type in _FOLLOWING:
            front.append(after)
    return end
