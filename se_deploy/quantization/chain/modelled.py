"""The plan that published fusion rules make of a graph, for a runtime that cannot plan on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.plan import SIZE_BYTES, Plan, PlanTensor
from se_deploy.plan import Kernel as PlanKernel
from se_deploy.quantization.chain import kernels as fusing

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.quantization.chain.kernels import Kernel, Kernels

VERSION = "modelled by published fusion rules"
"""What stands for the version of a plan that no compiler made."""
_INT8, _FLOAT = "int8", "float32"


class ModelledPlanner:
    """Plans graphs by the published rules (protocols.Planner): nothing is built and nothing is timed."""

    def __init__(self, runtime: str, target: str) -> None:
        """`runtime` and `target`: what the plan stands for."""
        self._runtime, self._target = runtime, target

    def plan(self, model: ir.Model) -> Plan:
        """Return the plan of `model`, shapes inferred."""
        return Plan(self._runtime, VERSION, self._target, tuple(planned(fusing.of(model))))


def planned(found: Kernels) -> list[PlanKernel]:
    """Return the kernels with what each reads and writes, and those that quantizers are on their own."""
    made: list[PlanKernel] = []
    for value in found.given:
        made += _own_quantizers(value)
    dequantized: set[ir.Value] = set()
    for kernel in found.all:
        reads_int8 = found.reads_int8(kernel)
        read = []
        for value in found.inputs(kernel):
            stored = found.storage.of(value) is not None
            read.append(_tensor(value, int8=stored and (reads_int8 or kernel.kind == "move")))
            needs_float = found.storage.dequantized(value) is not None and read[-1].dtype != _INT8
            if needs_float and kernel.kind != "pointwise" and value not in dequantized:
                dequantized.add(value)
                made.append(_conversion(value, to_int8=False))
            elif needs_float and kernel.kind == "pointwise":
                read[-1] = _tensor(value, int8=True)
        written, own = [], []
        for value in found.outputs(kernel):
            int8 = found.emits_int8(kernel, value) or (
                kernel.kind == "move" and found.storage.dequantized(value) is not None
            )
            written.append(_tensor(value, int8=int8))
            own += [] if int8 else _own_quantizers(value)
        made.append(
            PlanKernel(
                kernel.name,
                kernel.kind,
                tuple(read),
                tuple(written),
                tuple(str(node.name) for node in kernel.nodes),
                constants=_weights(kernel),
            )
        )
        made += own
    return made


def int8_bytes_fraction(plan: list[PlanKernel]) -> float:
    """Return which share of the bytes of activations that kernels read and write is INT8."""
    tensors = [t for kernel in plan for t in (*kernel.inputs, *kernel.outputs)]
    total = sum(t.size_bytes for t in tensors)
    return sum(t.size_bytes for t in tensors if t.dtype == _INT8) / total if total else 0.0


def _own_quantizers(value: ir.Value) -> list[PlanKernel]:
    """Return the quantizers that no kernel takes in: each reads the float tensor once more."""
    return [_conversion(value, to_int8=True) for _ in {q for _, q in fusing.quantizers_of(value)}]


def _conversion(value: ir.Value, *, to_int8: bool) -> PlanKernel:
    narrow, wide = _tensor(value, int8=True), _tensor(value, int8=False)
    name = f"{'quantize' if to_int8 else 'dequantize'} {value.name}"
    ends = ((wide,), (narrow,)) if to_int8 else ((narrow,), (wide,))
    return PlanKernel(name, "other", *ends, ())


def _weights(kernel: Kernel) -> tuple[PlanTensor, ...]:
    if kernel.layer is None:
        return ()
    return (_tensor(kernel.layer.weight, int8=kernel.layer.stored is not None),)


def _tensor(value: ir.Value, *, int8: bool) -> PlanTensor:
    dims = tuple(-1 if d is None else d for d in graph.dims(value) or ())
    own = _FLOAT if value.dtype is None else value.dtype.name.lower()
    names = {"float": _FLOAT, "double": "float64"}
    own = names.get(own, own)
    return PlanTensor(str(value.name), _INT8 if int8 else own if own in SIZE_BYTES else _FLOAT, dims)
