"""What is known of a value while a graph is read: a view of a tensor, or a vector pooled from one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from se_deploy import graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.se_blocks.constants import Constants
    from se_deploy.se_blocks.functions import Samples

SAME = frozenset({"Identity", "Cast", "CastLike", "Dropout", "QuantizeLinear", "DequantizeLinear"})
LAYOUT = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})
REDUCE = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "max"}
POOL = {"GlobalAveragePool": "mean", "GlobalMaxPool": "max", "AveragePool": "mean", "MaxPool": "max"}

Axis = frozenset[int]
Dim = int | str | None
"""A size, the name of a free size, or None where nothing is known."""


@dataclass(frozen=True, slots=True)
class View:
    """The same numbers as `root` in another layout or type, or their mean over some of its axes.

    `axes` says of each axis which axes of the root it holds; an empty set is an axis of size one.
    """

    root: ir.Value
    axes: tuple[Axis, ...]
    reduced: tuple[tuple[int, str], ...] = ()  # (axis of the root, "mean" | "sum" | "max")
    nodes: tuple[ir.Node, ...] = ()  # what led from the root to here, reductions included


@dataclass(frozen=True, slots=True)
class Layer:
    """A learned layer from `inputs` to `outputs` channels; 0 where their number is not known."""

    node: ir.Node
    form: Literal["conv", "linear"]
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Vector:
    """One number per channel and image, computed from the pooled `source` alone.

    The numbers are `function` of what the last learned layer gave; None where they are no scalar
    function of it (a softmax across channels).
    """

    source: View  # of the pooled tensor: root, and which of its axes is the channel
    squeeze_output: ir.Value
    pools: frozenset[str]  # "mean", "max", "sum", "attention"
    size: int | None  # channels
    axis: int | None  # where the channels lie; None where that is not known
    base: int  # equal for values that are scalar functions of the same vector
    function: Samples | None
    layers: tuple[Layer, ...] = ()
    functions: tuple[
        Samples | None, ...
    ] = ()  # those before each learned or affine layer; None: no scalar one
    settled: int = 0  # how many of them stand before the last learned layer
    weights: frozenset[ir.Value] = frozenset()
    nodes: frozenset[ir.Node] = frozenset()
    traits: frozenset[str] = frozenset()  # "norm", "eca", "softmax", "part", "merged", "scalar", …


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """What is known of one value."""

    view: View
    vectors: tuple[Vector, ...] = ()
    constant: bool = False  # does not depend on the graph's inputs
    of_shapes: bool = False  # depends on nothing but constants and shapes


class Analysis(Protocol):
    """What a transfer function may ask of the dataflow analysis."""

    constants: Constants

    def of(self, value: ir.Value) -> ValueInfo:
        """What is known of a value."""

    def base(self) -> int:
        """A mark for numbers that are no scalar function of any before them."""

    def dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """A value's shape, from the tensor that it views where inference does not say."""

    def reduced_axes(self, node: ir.Node) -> frozenset[int] | None:
        """The axes that a reduction or pool removes whole; None where it does anything else."""


def value_dims(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """A value's shape: a number, the name of a free size, or None for each axis."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def same(a: Dim, b: Dim, *, batch: bool = False) -> bool:
    """Whether two sizes are known to be equal; two free batch sizes are."""
    return (a is not None and a == b) or (batch and not isinstance(a, int) and not isinstance(b, int))


def same_shape(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether two tensors are known to have one shape, whatever their free sizes turn out to be."""
    first, second = value_dims(a), value_dims(b)
    if first is None or second is None:
        return False
    return len(first) == len(second) and all(same(x, y) for x, y in zip(first, second, strict=True))


def regroup(axes: Sequence[Axis], before: Sequence[Dim], after: Sequence[Dim]) -> tuple[Axis, ...] | None:
    """Which axes a Reshape from `before` to `after` puts where; None where it takes one apart.

    Axes may be merged with their neighbours, and axes of size one come and go.
    """
    old = [(axis, dim) for axis, dim in zip(axes, before, strict=True) if dim != 1]
    new = [i for i, dim in enumerate(after) if dim != 1]
    head = 0
    while head < min(len(old), len(new)) and same(old[head][1], after[new[head]], batch=new[head] == 0):
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and same(old[-1 - tail][1], after[new[-1 - tail]]):
        tail += 1
    middle_old, middle_new = old[head : len(old) - tail], new[head : len(new) - tail]
    placed: dict[int, Axis] = {new[i]: old[i][0] for i in range(head)}
    placed |= {new[-1 - i]: old[-1 - i][0] for i in range(tail)}
    if len(middle_new) == 1 and (middle_old or not isinstance(after[middle_new[0]], int)):
        placed[middle_new[0]] = frozenset().union(*(axis for axis, _ in middle_old))
    elif len(middle_new) == len(middle_old) and all(
        dim is None or after[i] is None for (_, dim), i in zip(middle_old, middle_new, strict=True)
    ):
        placed |= {i: axis for (axis, _), i in zip(middle_old, middle_new, strict=True)}
    elif middle_new or middle_old:
        return None
    return tuple(placed.get(i, frozenset()) for i in range(len(after)))


def locate(shape: Sequence[Dim] | None, size: int | None) -> int | None:
    """The axis of `size` channels behind the batch axis; None where it is not the only candidate."""
    if shape is None or len(shape) < 2:  # noqa: PLR2004  (batch and channels)
        return None
    if size == 1:
        return 1
    wide = [i for i in range(1, len(shape)) if shape[i] != 1]
    if len(wide) == 1 and (size is None or shape[wide[0]] in {size, None} or isinstance(shape[wide[0]], str)):
        return wide[0]
    exact = [i for i in wide if same(shape[i], size)]
    return exact[0] if len(exact) == 1 else None


def permuted(axis: int | None, perm: Sequence[int]) -> int | None:
    """Follow an axis through a Transpose."""
    return None if axis is None else list(perm).index(axis)


def permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    """A Transpose's permutation, the reversed order where it names none."""
    perm = graph.attribute(node, "perm")
    return tuple(perm) if isinstance(perm, (list, tuple)) else tuple(reversed(range(rank)))
