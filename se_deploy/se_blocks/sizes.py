"""Numbers that a graph computes from shapes, as products of sizes: H * W is told from H * 10 or H alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.se_blocks.values import value_dims

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir as ir

    from se_deploy.se_blocks.values import Analysis, View

    Size = str | tuple[ir.Value, int]
    """A free size: its name, or the tensor and axis that it is the size of."""

_PASSING = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})


@dataclass(frozen=True, slots=True)
class Product:
    """A factor times free sizes; equal products are equal numbers at every size."""

    factor: int
    sizes: tuple[Size, ...] = ()

    def times(self, other: Product) -> Product:
        """The product of both."""
        return Product(self.factor * other.factor, (*self.sizes, *other.sizes))

    def over(self, other: Product) -> Product | None:
        """The quotient, where the division leaves no remainder at any size."""
        left = list(self.sizes)
        for size in other.sizes:
            if size not in left:
                return None
            left.remove(size)
        if other.factor == 0 or self.factor % other.factor:
            return None
        return Product(self.factor // other.factor, tuple(left))

    def equals(self, other: Product) -> bool:
        """Whether both are one number, whatever the order of their sizes."""
        return self.over(other) == Product(1)


def count_of(view: View, axes: Iterable[int]) -> Product | None:
    """How many elements the root of a view has along `axes`; None where its rank is not known."""
    sizes = value_dims(view.root)
    if sizes is None:
        return None
    return _together(_size(view.root, sizes[axis], axis) for axis in axes)


def computed(flow: Analysis, value: ir.Value | None) -> Product | None:
    """What a value of one element is, where it is computed from shapes and constants alone."""
    numbers = _numbers(flow, value)
    return numbers[0] if numbers is not None and len(numbers) == 1 else None


def _size(tensor: ir.Value, dim: int | str | None, axis: int) -> Product:
    if isinstance(dim, int):
        return Product(dim)
    return Product(1, (dim if dim is not None else (tensor, axis),))


def _together(parts: Iterable[Product]) -> Product:
    product = Product(1)
    for part in parts:
        product = product.times(part)
    return product


def _numbers(flow: Analysis, value: ir.Value | None) -> tuple[Product, ...] | None:
    """The elements of a value of rank 0 or 1, in order."""
    array = flow.constants.array(value)
    if array is not None:
        whole = array.ndim <= 1 and all(float(n).is_integer() for n in array.reshape(-1))
        return tuple(Product(int(n)) for n in array.reshape(-1)) if whole else None
    node = None if value is None else value.producer()
    if node is None:
        return None
    if node.op_type in {"Shape", "Size"}:
        return _shape(flow, node)
    if node.op_type in _PASSING:
        return _numbers(flow, node.inputs[0])
    if node.op_type == "Concat":
        parts = [_numbers(flow, v) for v in node.inputs]
        known = [part for part in parts if part is not None]
        return tuple(n for part in known for n in part) if len(known) == len(parts) else None
    if node.op_type in {"Mul", "Div"}:
        return _elementwise(flow, node)
    given = _numbers(flow, node.inputs[0])
    if given is None:
        return None
    if node.op_type == "ReduceProd":
        return (_together(given),)
    if node.op_type in {"Gather", "Slice"}:
        return _some(flow, node, given)
    return None


def _shape(flow: Analysis, node: ir.Node) -> tuple[Product, ...] | None:
    tensor = node.inputs[0]
    dims = flow.dims(tensor)
    if tensor is None or dims is None:
        return None
    view = flow.of(tensor).view
    sizes = []
    for axis, dim in enumerate(dims):
        size: Product | None = _size(tensor, dim, axis)
        if dim is None and len(view.axes) == len(dims):
            size = count_of(view, sorted(view.axes[axis]))
        if size is None:
            return None
        sizes.append(size)
    if node.op_type == "Size":
        return (_together(sizes),)
    bounds = (graph.attribute(node, name) for name in ("start", "end"))
    return tuple(sizes[slice(*(b if isinstance(b, int) else None for b in bounds))])


def _elementwise(flow: Analysis, node: ir.Node) -> tuple[Product, ...] | None:
    a, b = (_numbers(flow, v) for v in node.inputs)
    if a is None or b is None or (len(a) != len(b) and 1 not in {len(a), len(b)}):
        return None
    count = max(len(a), len(b))
    a, b = (_repeated(side, count) for side in (a, b))
    made = [x.times(y) if node.op_type == "Mul" else x.over(y) for x, y in zip(a, b, strict=True)]
    known = tuple(one for one in made if one is not None)
    return known if len(known) == count else None


def _repeated(numbers: Sequence[Product], count: int) -> tuple[Product, ...]:
    return tuple(numbers) * (count if len(numbers) == 1 else 1)


def _some(flow: Analysis, node: ir.Node, given: tuple[Product, ...]) -> tuple[Product, ...] | None:
    """Take what a Gather or a Slice takes of a vector."""
    limits = [flow.constants.array(v) for v in tuple(node.inputs)[1:]]
    numbers = [[int(n) for n in array.reshape(-1)] for array in limits if array is not None]
    if len(numbers) != len(limits):
        return None
    if node.op_type == "Gather":
        inside = all(-len(given) <= i < len(given) for i in numbers[0])
        return tuple(given[i] for i in numbers[0]) if inside else None
    step = numbers[3][0] if len(numbers) == 4 else 1  # noqa: PLR2004 - starts, ends, axes, steps
    if any(len(part) != 1 for part in numbers) or step == 0:
        return None
    return given[numbers[0][0] : numbers[1][0] : step]


def is_close(number: float, product: Product) -> bool:
    """Whether a constant is the product, up to FP32's rounding of a reciprocal."""
    return not product.sizes and math.isclose(number, product.factor, rel_tol=1e-6)
