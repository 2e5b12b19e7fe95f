"""Planners made of arithmetic: what a graph costs is known, so what is chosen is too."""

from __future__ import annotations

from se_deploy import graph
from se_deploy.errors import BuildFailed
from se_deploy.plan import Kernel, Plan, PlanTensor


class CountingPlanner:
    """One kernel per node; it reads and writes what the node does, but a GlobalAveragePool twice."""

    def __init__(self, refuse=(), dislike=None):
        self.refuse, self.dislike, self.asked = refuse, dislike, 0

    def plan(self, model):
        self.asked += 1
        if set(self.refuse) & set(graph.ops(model)):
            raise BuildFailed("no such kernel", hint="-")
        layers = []
        for node in model.graph:
            tensors = [tensor(v) for v in node.inputs if v is not None and not v.is_initializer()]
            times = (
                8 if (node.op_type, tensors[0].name) == self.dislike else node.op_type == "GlobalAveragePool"
            )
            again = times * tensors
            outputs = tuple(tensor(v) for v in node.outputs)
            layers.append(Kernel(node.name, node.op_type, (*tensors, *again), outputs, (node.name,)))
        return Plan("fake", "1", "none", tuple(layers))


def tensor(value):
    return PlanTensor(value.name, "float32", tuple(d or -1 for d in graph.dims(value)))
