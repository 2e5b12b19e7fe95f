"""Write every SE block out anew in its one spelling, from what the census found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import onnx_ir as ir

from se_deploy import graph, se_blocks
from se_deploy.se_blocks import functions
from se_deploy.se_blocks.values import LAYOUT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from se_deploy.protocols import Array
    from se_deploy.se_blocks import SEBlock

_REDUCING = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool", "AveragePool"})
_SKIPPED = LAYOUT | _REDUCING | {"Expand", "Tile", "Resize", "Identity", "Dropout"}
"""What a vector per image passes unchanged once it has its channels on axis 1."""
_LEARNED = frozenset({"Conv", "Gemm", "MatMul"})
_BINARY = functions.BINARY_OPS
_UNARY = functions.UNARY_OPS | {"Cast"}
_CANONICAL = _UNARY | _BINARY | {"GlobalAveragePool", "Conv", "PRelu", "BatchNormalization"}
_Constant = tuple[ir.Value, tuple[int, ...], bytes]
"""What a new constant is made of, and its numbers: one for all readers that want the same."""
_MAP_RANK = 3  # (N, C, L), the least that GlobalAveragePool takes


def respell_blocks(model: ir.Model) -> int:
    """Spell each SE block as GlobalAveragePool -> Conv 1x1 -> activation -> Conv 1x1 -> gate -> Mul.

    Before: x: (N, C, *) -> any spatial mean -> Reshape, Gemm, MatMul, Add, … -> Reshape, Expand -> Mul
    After:  x -> GlobalAveragePool: (N, C, 1*) -> Conv 1x1, Add, … on (N, R, 1*) -> Mul, which broadcasts.
    Equal up to the order of the sums; the Mul stays, with its name and its output's.
    Needs: channels on axis 1 of x, constant weights, and between the layers only what `obstacles` lets pass.
    """
    fired = 0
    written: dict[tuple[ir.Value, int], ir.Value] = {}
    weights: dict[_Constant, ir.Value] = {}
    blocks = se_blocks.detect(model).se
    muls = nodes_of(model, blocks)
    for block in blocks:
        found = _Site.of(muls, block)
        if found is None or _is_canonical(found) or _obstacle(found):
            continue
        _Writer(model, found, written, weights).write()
        fired += 1
    return fired


def obstacles(model: ir.Model, blocks: Sequence[SEBlock]) -> Iterator[tuple[SEBlock, str]]:
    """The blocks that are in no canonical form and cannot be brought into it, and why."""
    muls = nodes_of(model, blocks)
    for block in blocks:
        found = _Site.of(muls, block)
        reason = _absence(model, block) if found is None else _obstacle(found)
        if reason:
            yield block, reason


def _absence(model: ir.Model, block: SEBlock) -> str:
    """Say why a block has no site in the graph itself."""
    body = graph.in_body(model, block.nodes)
    return "its parts are not in the graph" if body is None else f"{body}, where it stays as it is"


def nodes_of(model: ir.Model, blocks: Sequence[SEBlock]) -> dict[str, ir.Node]:
    """The nodes that apply the blocks' gates, by name: one walk over the graph for all of them."""
    wanted = {block.scale_node for block in blocks}
    return {node.name: node for node in model.graph if node.name in wanted and node.name is not None}


@dataclass(frozen=True, slots=True)
class _Site:
    """Where a block stands: y = Mul(data, gate), gate computed from `squeezed`."""

    block: SEBlock
    mul: ir.Node
    gate: ir.Value
    data: ir.Value
    squeezed: ir.Value

    @classmethod
    def of(cls, muls: Mapping[str, ir.Node], block: SEBlock) -> _Site | None:
        """A block's values by their names; None where one is gone."""
        mul = muls.get(block.scale_node)
        if mul is None or None in mul.inputs:
            return None
        gate = next((v for v in mul.inputs if v is not None and v.name == block.gate_output), None)
        data = next((v for v in mul.inputs if v is not gate), gate)
        if gate is None or data is None:
            return None
        above = (v for node in _above(gate, None) for v in node.outputs)
        squeezed = next((v for v in above if v.name == block.squeeze_output), None)
        return None if squeezed is None else cls(block, mul, gate, data, squeezed)

    @property
    def rank(self) -> int:
        """Axes of x."""
        return len(self.data.shape or ())

    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes between the squeeze and the gate."""
        return tuple(_above(self.gate, self.squeezed))


def _above(value: ir.Value, stop: ir.Value | None) -> Iterator[ir.Node]:
    """Walk from a value up to `stop`, along computed numbers, not shapes."""
    seen: set[ir.Node] = set()
    front = [value]
    while front:
        value = front.pop()
        node = value.producer()
        if value is stop or node is None or node in seen:
            continue
        seen.add(node)
        yield node
        front += _numbers(node)


def _numbers(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node that hold computed numbers: not its weights, shapes or axes."""
    several = node.op_type in _BINARY | {"MatMul"}
    inputs = node.inputs if several else node.inputs[:1]
    return [v for v in inputs if v is not None and graph.constant(v) is None]


def _is_canonical(site: _Site) -> bool:
    squeeze = site.squeezed.producer()
    return (
        squeeze is not None
        and squeeze.op_type == "GlobalAveragePool"
        and squeeze.inputs[0] is site.data
        and all(node.op_type in _CANONICAL and not _is_no_cast(node) for node in site.nodes())
    )


def _is_no_cast(node: ir.Node) -> bool:
    source = node.inputs[0]
    return node.op_type == "Cast" and source is not None and source.dtype == node.outputs[0].dtype


def _rounds(node: ir.Node, data: ir.Value) -> bool:
    """Whether a Cast of floating-point numbers leaves them fewer bits than `data` has."""
    source = node.inputs[0]
    before, after = None if source is None else source.dtype, node.outputs[0].dtype
    if node.op_type not in {"Cast", "CastLike"} or before is None or after is None or data.dtype is None:
        return False
    fewer = not after.is_floating_point() or after.bitwidth < data.dtype.bitwidth
    return before.is_floating_point() and fewer


def _obstacle(site: _Site) -> str:
    if site.rank < _MAP_RANK:
        return "the rank of what it scales is not known"
    if site.block.channel_axis != 1:
        return "its channels are on the last axis (NHWC), and no Transpose put them there"
    if site.data.dtype != site.squeezed.dtype:
        return f"it is squeezed in {site.squeezed.dtype}, while what it scales is {site.data.dtype}"
    for node in _above(site.squeezed, site.data):
        if node.name in site.block.nodes and _rounds(node, site.data):
            return f"{node.op_type} '{node.name}' rounds what it squeezes, and not what it scales"
    if "norm" in site.block.traits:
        return "a normalization between its layers has no form that a convolution could hold"
    for node in site.nodes():
        known = _SKIPPED | _UNARY | _LEARNED | _BINARY | {"PRelu", "BatchNormalization"}
        if node.op_type not in known:
            return (
                f"{node.op_type} '{node.name}' between its layers has no form that a convolution could hold"
            )
        if node.op_type in _REDUCING and not _keeps_all(node):
            return (
                f"{node.op_type} '{node.name}' between its layers has no form that a convolution could hold"
            )
        computed = _numbers(node)
        others = () if node.op_type in _SKIPPED else (v for v in node.inputs if v is not None)
        beside = [v for v in others if v not in computed and graph.constant(v) is None]
        if not computed or beside or any(v.producer() is None for v in computed):
            return (
                f"{node.op_type} '{node.name}' has weights that are computed in the graph: simplify it first"
            )
    return ""


def _keeps_all(node: ir.Node) -> bool:
    """Whether a reduction or pool is over axes of size one only."""
    before, after = graph.dims(node.inputs[0]), graph.dims(node.outputs[0])
    if before is None or after is None:
        return False
    return [d for d in before[1:] if d != 1] == [d for d in after[1:] if d != 1]


class _Writer:
    """Writes one block; `written` and `weights` are shared by all, so that shared parts stay shared."""

    def __init__(
        self,
        model: ir.Model,
        site: _Site,
        written: dict[tuple[ir.Value, int], ir.Value],
        weights: dict[_Constant, ir.Value],
    ) -> None:
        self.model = model
        self.site = site
        self.written = written
        self.weights = weights
        self.made: list[ir.Node] = []

    def write(self) -> None:
        """Put the new nodes before the Mul and let it read them."""
        gate = self._value(self.site.gate)
        owner = self.site.mul.graph
        if owner is None:
            raise ValueError("the Mul is in no graph")
        owner.insert_before(self.site.mul, self.made)
        data = _without_identity(self.site.data)
        self.site.mul.replace_input_with(self.site.mul.inputs.index(self.site.gate), gate)
        self.site.mul.replace_input_with(self.site.mul.inputs.index(self.site.data), data)

    def _value(self, value: ir.Value) -> ir.Value:
        key = (value, self.site.rank)
        if key not in self.written:
            self.written[key] = self._new(value)
        return self.written[key]

    def _new(self, value: ir.Value) -> ir.Value:
        node = value.producer()
        if node is None:
            raise ValueError(f"'{value.name}' lies outside the block")
        if value is self.site.squeezed:
            return self._node("GlobalAveragePool", node, [_without_identity(self.site.data)])
        if node.op_type in _SKIPPED or _is_no_cast(node):
            return self._value(_numbers(node)[0])
        if node.op_type in _LEARNED:
            return self._learned(node)
        if node.op_type in _BINARY | {"PRelu"}:
            inputs = [self._operand(v, node) for v in node.inputs if v is not None]
            return self._node(node.op_type, node, inputs, node.attributes)
        return self._node(
            node.op_type, node, [self._value(_numbers(node)[0]), *node.inputs[1:]], node.attributes
        )

    def _operand(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """An operand: computed ones anew, constants with their channels on axis 1."""
        array = graph.constant(value)
        if array is None:
            return self._value(value)
        if array.size == 1 and array.ndim <= self.site.rank:
            return value
        batch = () if node.op_type == "PRelu" else (1,)  # a slope has no batch axis
        shape = (*batch, -1, *(1,) * (self.site.rank - 2))
        return self._constant(value, array.reshape(shape), "channels")

    def _learned(self, node: ir.Node) -> ir.Value:
        unit = (slice(None), slice(None)) + (None,) * (self.site.rank - 2)  # (O, I) -> (O, I, 1, 1)
        source = self._value(_numbers(node)[0])
        if node.op_type == "Conv":
            weight = _given(node.inputs[1])
            array = _array(weight)
            if array.ndim != self.site.rank:
                weight = self._constant(weight, array.reshape(array.shape[:2])[unit], "conv")
            kept = {k: v for k, v in node.attributes.items() if k == "group"}
            return self._node("Conv", node, [source, weight, *node.inputs[2:]], kept)
        first = node.op_type == "MatMul" and graph.constant(node.inputs[0]) is not None
        weight = _given(node.inputs[0 if first else 1])
        array = _array(weight)
        if node.op_type == "MatMul":
            matrix = array.reshape(array.shape[-2:])
            weight = self._constant(weight, (matrix if first else matrix.T)[unit], "conv")
            return self._node("Conv", node, [source, weight])
        matrix = array if graph.attribute(node, "transB", 0) else array.T
        matrix = (matrix * _scale(node, "alpha")).astype(array.dtype)
        made = self._constant(weight, matrix[unit], "conv")
        if len(node.inputs) < 3 or node.inputs[2] is None:  # noqa: PLR2004  (A, B, C)
            return self._node("Conv", node, [source, made])
        bias = _array(node.inputs[2])
        wide = np.broadcast_to(bias.reshape(-1) * _scale(node, "beta"), matrix.shape[:1]).astype(bias.dtype)
        return self._node("Conv", node, [source, made, self._constant(node.inputs[2], wide, "conv")])

    def _constant(self, value: ir.Value, array: Array, use: str) -> ir.Value:
        key = (value, array.shape, array.tobytes())  # tied weights are read as they are and turned
        if key not in self.weights:
            self.weights[key] = graph.initializer(self.model, f"{value.name}_{use}", array)
        return self.weights[key]

    def _node(
        self,
        op_type: str,
        like: ir.Node,
        inputs: list[ir.Value | None] | list[ir.Value],
        attributes: object = (),
    ) -> ir.Value:
        """Make a node that takes the site, the name and the output name of `like`."""
        taken = attributes.values() if isinstance(attributes, dict) or hasattr(attributes, "values") else ()
        output = ir.Value(name=like.outputs[0].name, type=like.outputs[0].type)
        node = ir.Node("", op_type, inputs, tuple(taken), outputs=[output], name=like.name)
        self.made.append(node)
        return output


def _scale(node: ir.Node, name: str) -> float:
    return cast("float", graph.attribute(node, name, 1.0))


def _given(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise ValueError("a learned layer without weights")
    return value


def _array(value: ir.Value | None) -> Array:
    array = graph.constant(value)
    if array is None:
        raise ValueError("weights that are no constant")
    return array


def _without_identity(value: ir.Value) -> ir.Value:
    while (node := value.producer()) is not None and (node.op_type == "Identity" or _is_no_cast(node)):
        value = _given(node.inputs[0])
    return value
