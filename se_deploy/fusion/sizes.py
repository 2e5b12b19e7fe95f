"""A plan with free sizes, counted at one of them: the compiler leaves -1 where a size is free.

An engine's plan names its tensors as the compiler likes, so that most sizes follow from the ONNX nodes of a
kernel, and those of copies from the tensors beside them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import graph

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx_ir as ir

    from se_deploy.plan import Kernel, Plan, PlanTensor

    Dims = tuple[int, ...]


_BATCH, _CHANNELS = 0, 1  # axes of (N, C, ...)


@dataclass(frozen=True, slots=True)
class Filled:
    """The plan with its sizes, and the tensors whose size could not be found, which count too little."""

    plan: Plan
    unknown: tuple[str, ...]


def filled(plan: Plan, model: ir.Model) -> Filled:
    """Fill the plan's free sizes in from `model`, the same graph with every size fixed and batch 1.

    A first dimension that is 1 there stays free: it is the batch, and figures are per image.
    """
    known = _Known(model)
    kernels = [layer for layer in plan.layers if not layer.host_only]
    for padded in (False, True):
        while sum(known.learn(kernel, padded=padded) for kernel in kernels):
            pass
    tensors = [t for kernel in kernels for t in (*kernel.inputs, *kernel.outputs)]
    free = [t.name for t in tensors if _is_free(t) and t.name not in known.of]
    layers = tuple(_with_sizes(layer, known.of) for layer in plan.layers)
    return Filled(dataclasses.replace(plan, layers=layers), tuple(dict.fromkeys(free)))


class _Known:
    """What is known of the plan's tensors so far, by name."""

    def __init__(self, model: ir.Model) -> None:
        self.of: dict[str, Dims] = {}
        self._nodes = {node.name: node for node in model.graph}
        self._values = {v.name: _fixed(v) for v in model.graph.inputs}
        for node in model.graph:  # weights, which may fit by chance, are no activation, nor what they give
            if any(v is not None and v.name in self._values for v in node.inputs):
                self._values |= {v.name: _fixed(v) for v in node.outputs}

    def learn(self, kernel: Kernel, *, padded: bool) -> int:
        """Find sizes by name, by the kernel's ONNX nodes, or by what is beside them; say of how many tensors.

        `padded`: channels may be more than the ONNX tensor has, as a compiler rounds them up, and so may the
        batch, which is 1 there; no other axis may.
        """
        nodes = [self._nodes[name] for name in kernel.onnx_nodes if name in self._nodes]
        written = [self._values.get(value.name) for node in reversed(nodes) for value in node.outputs]
        read = [self._values.get(v.name) for node in nodes for v in node.inputs if v is not None]
        beside = [self.of[t.name] for t in (*kernel.inputs, *kernel.outputs) if t.name in self.of]
        found = 0
        for tensors, near in ((kernel.inputs, read), (kernel.outputs, written)):
            for tensor in tensors:
                if _is_free(tensor) and tensor.name not in self.of:
                    own = self._values.get(tensor.name)
                    dims = _first_fit(tensor, [own], near, [] if nodes else beside, padded=padded)
                    if dims is not None:
                        self.of[tensor.name] = dims
                        found += 1
        return found


def _fixed(value: ir.Value) -> Dims | None:
    known = graph.dims(value)
    return None if known is None or None in known else tuple(d for d in known if d is not None)


def _is_free(tensor: PlanTensor) -> bool:
    """Whether a size besides the batch is free."""
    return any(d < 0 for d in tensor.dims[1:])


def _first_fit(tensor: PlanTensor, *candidates: Iterable[Dims | None], padded: bool) -> Dims | None:
    for dims in (dims for group in candidates for dims in group if dims is not None):
        if len(dims) == len(tensor.dims) and all(
            p in {-1, d} or (padded and p > d and (axis == _CHANNELS or (axis == _BATCH and d == 1)))
            for axis, (p, d) in enumerate(zip(tensor.dims, dims, strict=True))
        ):
            return dims
    return None


def _with_sizes(layer: Kernel, known: Mapping[str, Dims]) -> Kernel:
    def sized(tensors: Sequence[PlanTensor]) -> tuple[PlanTensor, ...]:
        return tuple(
            dataclasses.replace(t, dims=_merged(t.dims, known[t.name])) if t.name in known else t
            for t in tensors
        )

    return dataclasses.replace(layer, inputs=sized(layer.inputs), outputs=sized(layer.outputs))


def _merged(planned: Dims, dims: Dims) -> Dims:
    """Return the planned sizes with the free ones as the graph has them.

    They are the graph's own where a kernel sees the tensor in another rank, as a signal's does as an image.
    """
    if len(planned) != len(dims):
        return dims
    first = planned[:1] if dims[:1] == (1,) else dims[:1]
    return (*first, *(d if p < 0 else p for p, d in zip(planned[1:], dims[1:], strict=True)))
