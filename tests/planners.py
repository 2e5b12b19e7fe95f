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


class TablePlanner:
    """Each block costs what a table says of the spelling of its squeeze; nothing else but Identity costs.

    `table`: for block i, (value, kernels) by operator: "GlobalAveragePool", "AveragePool" or "Transpose".
    `border`: the operators of blocks 1 and 2 that cost one kernel more side by side.
    """

    def __init__(self, table, border=()):
        self.table, self.border = table, border

    def plan(self, model):
        layers, forms = [], []
        for i, costs in enumerate(self.table, 1):
            squeeze = next(n for n in model.graph if n.op_type in costs and n.inputs[0].name == f"c{i}")
            value, kernels = costs[squeeze.op_type]
            forms.append(squeeze.op_type)
            layers += [self.kernel(squeeze, value), *[self.kernel(squeeze, 0)] * (kernels - 1)]
        layers += [self.kernel(node, 1) for node in model.graph if node.op_type == "Identity"]
        layers += [Kernel("border", "copy", (), (), ())] * (tuple(forms[:2]) == self.border)
        return Plan("fake", "1", "none", tuple(layers))

    @staticmethod
    def kernel(node, size):
        outputs = (PlanTensor(node.outputs[0].name, "int8", (size,)),) if size else ()
        return Kernel(node.name, node.op_type, (), outputs, (node.name,))


class SideBySide:
    """A planner that plans several graphs at a time (`protocols.ManyPlanner`), the last one first."""

    def __init__(self, planner, width):
        self.planner, self.width, self.batches = planner, width, []

    def plan(self, model):
        return self.planner.plan(model)

    def plan_each(self, models):
        models = list(models)
        self.batches.append(len(models))
        answers = {}
        for i in reversed(range(len(models))):
            try:
                answers[i] = self.planner.plan(models[i])
            except BuildFailed as e:
                answers[i] = e
        return [answers[i] for i in range(len(models))]


class SitePlanner:
    """Each Identity costs what a table says, there or dropped; nothing else costs anything.

    `table`: by the Identity's output, bytes where it is there and where it is not.
    """

    def __init__(self, table):
        self.table = table

    def plan(self, model):
        there = {node.outputs[0].name: node for node in model.graph if node.op_type == "Identity"}
        layers = []
        for name, (kept, dropped) in self.table.items():
            size = kept if name in there else dropped
            tensor = PlanTensor(name, "int8", (size,))
            layers.append(Kernel(f"k_{name}", "Identity", (), (tensor,), (f"n_{name}",)))
        return Plan("fake", "1", "none", tuple(layers))


class OperatorPlanner:
    """The node that writes `name` costs what a table says of its operator; nothing else costs anything."""

    def __init__(self, name, table):
        self.name, self.table = name, table

    def plan(self, model):
        (node,) = (n for n in model.graph if n.outputs[0].name == self.name)
        tensor = PlanTensor(self.name, "int8", (self.table[node.op_type],))
        return Plan("fake", "1", "none", (Kernel("k", node.op_type, (), (tensor,), (node.name,)),))
