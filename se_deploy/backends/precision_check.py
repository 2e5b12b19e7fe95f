"""The precision that a plan really runs in, held against what the graph asks for.

A compiler that cannot do what it was asked for falls back silently; its plan shows it, in the element types
that each convolution reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from se_deploy import graph
from se_deploy.errors import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from se_deploy.plan import Kernel, Plan

PrecisionName = Literal["fp32", "bf16", "fp16", "int8"]

_ORDER: tuple[PrecisionName, ...] = ("int8", "fp16", "bf16", "fp32")  # narrow to wide
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_NARROW = {
    "int8": "int8", "uint8": "int8", "float8e4m3": "int8", "float16": "fp16", "bfloat16": "bf16",
}  # fmt: skip
_HELD = 0.95  # of the multiply-accumulates that the graph has in its narrowest type


@dataclass(frozen=True, slots=True)
class PlanPrecision:
    """What a plan computes in, as fractions of the multiply-accumulates of convolutions, FCs and products."""

    precision: PrecisionName  # the graph's narrowest type if the plan holds it, else what most runs in
    planned: Mapping[PrecisionName, float]  # without what is not visible
    asked: Mapping[PrecisionName, float]  # all of it, by the graph's own types
    fallen: tuple[str, ...]  # nodes that the plan runs in a wider type than the graph has
    hidden: tuple[str, ...] = ()  # kernels that do not show what they compute in
    hidden_share: float = 0.0  # what they hold

    def failures(self, requested: PrecisionName) -> tuple[str, ...]:
        """Return why the plan is not in the precision requested; empty where it is."""
        if self.precision == requested:
            return ()
        shares = ", ".join(f"{share:.0%} in {name}" for name, share in self.planned.items() if share)
        if self.asked[requested] == 0:
            return (f"{requested} was asked for, but nothing in the graph is in {requested}: {shares}",)
        some = f", among them '{self.fallen[0]}'" if self.fallen else ""
        fell = f"{counted(len(self.fallen), 'layer')} fell back{some}"
        return (f"{requested} was asked for, but the plan runs in {self.precision}: {shares}; {fell}",)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to warn of: the part of the network whose precision nobody sees."""
        if not self.hidden:
            return ()
        more = f" and {len(self.hidden) - 1} more" if len(self.hidden) > 1 else ""
        share = f"the precision of {self.hidden_share:.0%} of the multiply-accumulates is not visible"
        return (
            f"{share}: it is inside '{self.hidden[0]}'{more}, which the compiler shows from outside only",
        )


def planned_precision(plan: Plan, model: ir.Model) -> PlanPrecision:
    """Return what `plan`, made for `model`, computes its convolutions, FCs and matrix products in."""
    layers = {n.name: n for n in model.graph if n.op_type in _LAYERS and n.name and graph.macs(n)}
    homes = {name: _kernels(name, plan) for name in layers}
    dark = [name for name, kernels in homes.items() if any(kernel.opaque for kernel in kernels)]
    asked = {name: _asked(node) for name, node in layers.items()}
    planned = {name: _planned(homes[name], asked[name]) for name in layers if name not in dark}
    weights = {name: graph.macs(node) for name, node in layers.items()}
    shares_asked, shares = _shares(asked, weights), _shares(planned, weights)
    narrowest: PrecisionName = next((p for p in _ORDER if shares_asked[p] > 0), _ORDER[-1])
    to_hold = _shares({name: asked[name] for name in planned}, weights)[narrowest]
    held = sum(shares[p] for p in _ORDER[: _ORDER.index(narrowest) + 1]) >= _HELD * to_hold
    wider = _ORDER[_ORDER.index(narrowest) + 1 :]
    most = max(wider or _ORDER, key=lambda p: shares[p])
    return PlanPrecision(
        precision=narrowest if held else most,
        planned=shares,
        asked=shares_asked,
        fallen=tuple(n for n in planned if _ORDER.index(planned[n]) > _ORDER.index(asked[n])),
        hidden=tuple(
            dict.fromkeys(k.name for name in layers if name in dark for k in homes[name] if k.opaque)
        ),
        hidden_share=1 - sum(shares.values()) if layers else 0.0,
    )


def _asked(node: ir.Node) -> PrecisionName:
    """Return the graph's own type at a layer: INT8 behind Q/DQ, else the type of its result."""
    sources = [value.producer() for value in node.inputs[:2] if value is not None]
    if sources and all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
        return "int8"
    dtype = node.outputs[0].dtype
    floats: dict[str, PrecisionName] = {"FLOAT16": "fp16", "BFLOAT16": "bf16"}
    return "fp32" if dtype is None else floats.get(dtype.name, "fp32")


def _kernels(name: str, plan: Plan) -> list[Kernel]:
    """Return the kernels that compute a layer; where none names it, those that may: the opaque ones."""
    launched = [kernel for kernel in plan.layers if not kernel.host_only]
    named = [kernel for kernel in launched if name in kernel.onnx_nodes]
    return named or [kernel for kernel in launched if kernel.opaque]


def _planned(kernels: list[Kernel], asked: PrecisionName) -> PrecisionName:
    """Return the type that the kernel of a layer reads; the graph's where the compiler names no kernel."""
    main = [k for k in kernels if k.constants] or kernels
    if not main:
        return asked
    return min((_reads(kernel) for kernel in main), key=_ORDER.index)


def _reads(kernel: Kernel) -> PrecisionName:
    types = {_NARROW.get(tensor.dtype, "fp32") for tensor in kernel.inputs} or {"fp32"}
    return next(p for p in _ORDER if p in types)


def _shares(
    precisions: Mapping[str, PrecisionName], weights: Mapping[str, int]
) -> dict[PrecisionName, float]:
    total = sum(weights.values()) or 1  # of every layer, also of those that are not in `precisions`
    return {p: sum(weights[n] for n, q in precisions.items() if q == p) / total for p in _ORDER}
