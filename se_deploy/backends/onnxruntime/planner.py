"""What ONNX Runtime's CPU provider will run: its optimized graph, each node of it one kernel.

It fuses and renames nodes as it likes, but a tensor that survives keeps its name, and a node moved to its
blocked layout (NCHWc) is named for the tensor that it computes. So every kernel is mapped back to the nodes
of the original graph by the tensors at its edges.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as states

from se_deploy import graph, locks
from se_deploy.errors import BuildFailed
from se_deploy.plan import Kernel, Plan, PlanTensor

if TYPE_CHECKING:
    import onnx_ir as ir

SHAPE_OPS = frozenset({"Shape", "Size"})
"""Operators that read a tensor's shape and not its numbers."""

_BLOCKED = "_nchwc"
_NORMALIZED = "_bn"  # a BatchNormalization as a convolution in the blocked layout
_BLOCKED_DOMAIN = "com.microsoft.nchwc"
_SUM_INPUT = 3  # of a blocked Conv: what is added to its result
_CAST_PREFIX = "InsertedPrecisionFreeCast_"
FATAL_ONLY = 4
"""The log level that keeps ONNX Runtime off the terminal: what goes wrong is in its exceptions too."""

REFUSALS = (
    states.EPFail, states.Fail, states.InvalidArgument, states.InvalidGraph, states.InvalidProtobuf,
    states.NoSuchFile, states.NotImplemented, states.RuntimeException,
)  # fmt: skip
"""What ONNX Runtime raises for a graph that it cannot load."""

_PLAN_NAMES = {
    "float": "float32",
    "double": "float64",
    "float8e4m3fn": "float8e4m3",
    "uint32": "int32",
    "uint64": "int64",
}  # fmt: skip  (unsigned ones by their size)


def plan(model: ir.Model) -> Plan:
    """Return the plan of ONNX Runtime's CPU provider for `model`.

    Raises: BuildFailed with ONNX Runtime's reason.
    """
    optimized = _optimized(model)
    edges = _Edges(model, optimized)
    return Plan(
        "onnxruntime",
        str(ort.__version__),
        "cpu",
        tuple(edges.kernel(node) for node in optimized.graph.node),
    )


class OrtPlanner:
    """The optimizer of ONNX Runtime as a planner (protocols.Planner)."""

    def plan(self, model: ir.Model) -> Plan:
        """Plan `model` for the CPU provider. Raises: BuildFailed with ONNX Runtime's reason."""
        return plan(model)


class _Edges:
    """The tensors between the kernels, and which tensor of the original graph each one is."""

    def __init__(self, model: ir.Model, optimized: onnx.ModelProto) -> None:
        self._values: dict[str, ir.Value] = _values(model)
        outputs: dict[str, str] = {n.name: n.outputs[0].name or "" for n in model.graph if n.name}
        names = {str(node.name) for node in optimized.graph.node}
        self._kept = {name: output for name, output in outputs.items() if name in names}
        self._replaced = {name: output for name, output in outputs.items() if name not in names}
        self._types = _types(optimized)
        self._constants = {tensor.name: tensor for tensor in optimized.graph.initializer}
        self._names: dict[str, str] = {}
        self._sized: dict[str, str] = {}  # a tensor that is none of the original's -> one as large
        for node in optimized.graph.node:
            data = next((name for name in node.input if name and name not in self._constants), "")
            for i, name in enumerate(node.output):
                self._names[name] = self._original(node, i)
                if self._names[name] not in self._values and data:
                    self._sized[name] = data  # it is what a pointwise node or a transpose makes of its input
        self._stops = set(self._names.values()) | {value.name for value in optimized.graph.input}

    def kernel(self, node: onnx.NodeProto) -> Kernel:
        reads = [name for name in node.input if name]
        inputs = tuple(self._tensor(name, node) for name in reads if name not in self._constants)
        outputs = tuple(self._tensor(name, node) for name in node.output if name)
        constants = tuple(
            PlanTensor(name, _word(self._constants[name].data_type), tuple(self._constants[name].dims))
            for name in reads
            if name in self._constants
        )
        domain = node.domain.removeprefix("com.microsoft").removeprefix(".")
        return Kernel(
            node.name,
            f"{domain}.{node.op_type}" if domain else node.op_type,
            inputs,
            outputs,
            self._nodes(node),
            constants,
            host_only=node.op_type in SHAPE_OPS,
        )

    def _original(self, node: onnx.NodeProto, index: int) -> str:
        """Name the original tensor that an output of an optimized node holds."""
        name = str(node.output[index]).removeprefix(_CAST_PREFIX)
        label = str(node.name).removeprefix(_CAST_PREFIX)
        if name in self._values:
            return name
        if node.op_type == "ReorderInput":
            return self._names.get(node.input[0], str(node.input[0]))
        blocked = label.removesuffix(_BLOCKED)
        for shown in (blocked, blocked.removesuffix(_NORMALIZED)):
            if shown in self._values:
                return self._with_epilogue(node, shown)
        if node.name in self._kept:
            return self._kept[str(node.name)]
        kin = [n for n in self._replaced if label.startswith(n)]  # "/act/Mul" in "/act/Mul/QuickGeluFusion/"
        return self._replaced[max(kin, key=len)] if kin else name

    def _with_epilogue(self, node: onnx.NodeProto, name: str) -> str:
        """Follow `name` over the residual Add and the activation that the blocked node computes too."""
        fused = ["Add"] if len(node.input) > _SUM_INPUT and node.input[_SUM_INPUT] else []
        fused += [attr.s.decode() for attr in node.attribute if attr.name == "activation"]
        for op in fused:
            value = self._values[name]
            producer = value.producer()
            after = [use.node for use in value.uses() if use.node.op_type == op]
            if (producer is None or producer.op_type != op) and after:
                name = after[0].outputs[0].name or name
        return name

    def _tensor(self, name: str, node: onnx.NodeProto) -> PlanTensor:
        known = self._value(name)
        dtype, dims = self._types.get(name, ("", None))
        if dims is None:
            dims = tuple(-1 if d is None else d for d in (graph.dims(known) or ()))
        if name.startswith(_CAST_PREFIX) or node.domain == _BLOCKED_DOMAIN:
            dtype = "float"  # what a cast without loss is put in for, and all that the blocked layout has
        elif not dtype:
            dtype = "float" if known is None or known.dtype is None else known.dtype.name.lower()
        blocked = name not in self._values and node.domain == _BLOCKED_DOMAIN
        return PlanTensor(name, _PLAN_NAMES.get(dtype, dtype), dims, "nchwc" if blocked else "")

    def _value(self, name: str) -> ir.Value | None:
        """Return the original tensor, or one as large."""
        found = self._values.get(self._names.get(name, name))
        return self._value(self._sized[name]) if found is None and name in self._sized else found

    def _nodes(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """Name the original nodes between this kernel's inputs and its outputs, in graph order."""
        cast = node.op_type == "Cast" and node.name.startswith(_CAST_PREFIX)
        if cast or node.op_type in {"ReorderInput", "ReorderOutput"}:
            return ()  # it computes nothing: the tensor belongs to the kernel that gave it
        originals = (self._values.get(self._names.get(name, name)) for name in node.output)
        wanted = [value for value in originals if value is not None]
        found: dict[str, None] = {}
        while wanted:
            producer = wanted.pop().producer()
            if producer is None or producer.name is None or producer.name in found:
                continue
            found[producer.name] = None
            wanted += [v for v in producer.inputs if v is not None and v.name not in self._stops]
        return tuple(reversed(found))


def _optimized(model: ir.Model) -> onnx.ModelProto:
    options = ort.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = 1
    with locks.scratch() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(graph.to_bytes(model), options, providers=["CPUExecutionProvider"])
        except REFUSALS as e:
            raise BuildFailed(
                f"ONNX Runtime {ort.__version__} refused the network: {str(e).strip().splitlines()[0]}",
                hint="export it again with `se-deploy export`",
            ) from e
        return onnx.load(path)


def _values(model: ir.Model) -> dict[str, ir.Value]:
    produced = (value for node in model.graph for value in node.outputs)
    return {value.name: value for value in (*model.graph.inputs, *produced) if value.name}


def _types(optimized: onnx.ModelProto) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    """Return element type and shape of every tensor that the optimized graph declares, -1 where free."""
    types = {}
    for info in (*optimized.graph.value_info, *optimized.graph.input, *optimized.graph.output):
        tensor = info.type.tensor_type
        dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
        types[info.name] = (_word(tensor.elem_type), dims if tensor.HasField("shape") else None)
    return types


def _word(elem_type: int) -> str:
    name: str = onnx.TensorProto.DataType.Name(elem_type).lower()
    return _PLAN_NAMES.get(name, name)
