"""A compiler's plan: the kernels it will launch, what each reads and writes, and the ONNX nodes in it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SIZE_BYTES = {
    "float64": 8.0, "int64": 8.0, "float32": 4.0, "int32": 4.0, "float16": 2.0, "bfloat16": 2.0,
    "int16": 2.0, "uint16": 2.0, "int8": 1.0, "uint8": 1.0, "bool": 1.0, "float8e4m3": 1.0, "int4": 0.5,
    "float4": 0.5,
}  # fmt: skip
"""Bytes of one element, by the type names that every backend's plan is translated to."""


@dataclass(frozen=True, slots=True)
class PlanTensor:
    """One activation or constant at a kernel's edge; dims as planned, -1 where dynamic."""

    name: str
    dtype: str  # a key of SIZE_BYTES
    dims: tuple[int, ...]
    layout: str = ""  # "nchw", "nhwc" or the compiler's own word; "" where it does not say

    @property
    def size_bytes(self) -> int:
        """Bytes: a dynamic dimension, which is the batch's, counts as 1."""
        return math.ceil(SIZE_BYTES[self.dtype] * math.prod(max(1, d) for d in self.dims))


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch of the plan, or one of its shape-only host calls."""

    name: str
    kind: str  # the compiler's own word: "correlation", "kgen", "avgpool", "Conv", ...
    inputs: tuple[PlanTensor, ...]  # activations only
    outputs: tuple[PlanTensor, ...]
    onnx_nodes: tuple[str, ...]  # names of the ONNX nodes computed in it
    constants: tuple[PlanTensor, ...] = ()
    host_only: bool = False  # computes shapes; no kernel is launched
    opaque: bool = False  # a part of the network whose kernels, and what they compute in, are not shown
    images: int = 1  # that the tensors' dims count; figures are per image

    @property
    def activation_bytes(self) -> int:
        """Bytes read and written per image, without constants."""
        return math.ceil(sum(t.size_bytes for t in (*self.inputs, *self.outputs)) / self.images)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a compiler said it would run; figures are per image, at the sizes in `shapes`."""

    runtime: str  # the name of the backend that made it
    version: str
    target: str  # "sm86", "cpu", ...
    layers: tuple[Kernel, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()  # of each input; () where all of them are fixed

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets that the plan serves, each by its name: "sm80+sm86" is two."""
        return tuple(self.target.split("+"))

    def per_image(self, shapes: Mapping[str, Sequence[int]], images: int) -> Plan:
        """Return the plan as planned at `shapes`, with `images` in each launch."""
        layers = tuple(dataclasses.replace(layer, images=images) for layer in self.layers)
        return dataclasses.replace(
            self, layers=layers, shapes=tuple((name, tuple(dims)) for name, dims in shapes.items())
        )

    @property
    def kernels(self) -> int:
        """Launches; shape-only calls are none."""
        return sum(not layer.host_only for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Bytes that all kernels read and write per image."""
        return sum(layer.activation_bytes for layer in self.layers if not layer.host_only)

    @property
    def weight_bytes(self) -> int:
        """Bytes of constants, each counted once."""
        return sum({t.name: t.size_bytes for layer in self.layers for t in layer.constants}.values())
