"""A graph's operator set: which ones are read, and onnx's own converter to another one."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from se_deploy import graph
from se_deploy.errors import UnsupportedGraph

if TYPE_CHECKING:
    from collections.abc import Sequence

OLDEST = 7
"""ONNX Runtime guarantees its answers from here on, so that a conversion can be compared with the file."""

NEWEST = 26
"""The last one that ONNX Runtime 1.31 loads."""

OWN = 11
"""From here on every step works on the graph as it is; an older one is converted to this."""

PER_CHANNEL = 13
"""From here DequantizeLinear has an axis."""

FP16_SCALES = 19
"""From here QuantizeLinear takes FP16 tensors and FP16 scales."""

BF16 = 22
"""From here convolutions, pools and most activations take bfloat16."""


def refuse_unknown(model: ir.Model, name: str) -> None:
    """Raise UnsupportedGraph where the graph's operator set is older or newer than what can be read."""
    version = graph.opset(model)
    if not OLDEST <= version <= NEWEST:
        raise UnsupportedGraph(
            f"'{name}' has operator set {version}, and only {OLDEST} to {NEWEST} can be read",
            hint="export it again with --opset 20"
            if version > NEWEST
            else "convert it with onnx.version_converter, or export it again with --opset 20",
        )


def at_least(model: ir.Model, version: int) -> ir.Model:
    """Convert to operator set `version` where the graph has an older one; the model itself otherwise.

    Raises: UnsupportedGraph with onnx's reason where an operator cannot be converted.
    """
    return model if graph.opset(model) >= version else converted(model, version)


def converted(model: ir.Model, version: int) -> ir.Model:
    """Return the graph in operator set `version`, older or newer, by onnx's version converter.

    Tensors keep their names. Raises: UnsupportedGraph with onnx's reason where it cannot.
    """
    before = graph.opset(model)
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(model), version)
        onnx.checker.check_model(proto)  # an operator without an adapter is passed on as it was
    except (
        RuntimeError,
        onnx.checker.ValidationError,
        onnx.onnx_cpp2py_export.version_converter.ConvertError,
    ) as e:
        raise UnsupportedGraph(
            f"the graph has operator set {before}, and onnx cannot convert it to {version}: {_reason(e)}",
            hint=f"export the network with --opset {version}"
            + (" or newer" if version > before else ", or leave --opset out"),
        ) from e
    made = graph.tidy(graph.inline(ir.from_proto(proto)))
    made.metadata_props.update(model.metadata_props)
    return made


def allows(node: ir.Node, version: int, dtype: ir.DataType, value: ir.Value) -> bool:
    """Whether ONNX lets a node of operator set `version` have `dtype` wherever it reads or writes `value`.

    By the operator's schema. False where that operator set has no operator of the name.
    """
    try:
        inputs, outputs = _types(node.op_type, version)
    except onnx.defs.SchemaError:
        return False
    wanted = f"tensor({dtype.name.lower()})"
    slots = ((node.inputs, inputs), (node.outputs, outputs))
    return all(wanted in types[min(i, len(types) - 1)] for held, types in slots for i in _places(held, value))


def _places(held: Sequence[ir.Value | None], value: ir.Value) -> list[int]:
    return [i for i, one in enumerate(held) if one is value]


@cache
def _types(operator: str, version: int) -> tuple[tuple[frozenset[str], ...], tuple[frozenset[str], ...]]:
    """Return the types that each input and each output may have; the last may stand for more of its kind."""
    schema = onnx.defs.get_schema(operator, version)
    named = {one.type_param_str: frozenset(one.allowed_type_strs) for one in schema.type_constraints}

    def of(slots: Sequence[onnx.defs.OpSchema.FormalParameter]) -> tuple[frozenset[str], ...]:
        return tuple(named.get(slot.type_str, frozenset({slot.type_str})) for slot in slots)

    return of(schema.inputs), of(schema.outputs)


def _reason(error: Exception) -> str:
    """Return the first line of what onnx says, without the place in its own source."""
    text = re.sub(r"^\S+:\d+: .*Assertion .* failed: ", "", str(error).strip())
    return text.splitlines()[0] if text else type(error).__name__
