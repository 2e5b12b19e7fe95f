"""Random nodes of every operator that ONNX knows, with inputs and attributes that nobody foresaw.

What infers their shapes is C++ in this process: a value that it takes for granted ends it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.defs import OpSchema

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    Array = np.ndarray

OPSETS = (7, 8, 9, 10, 11, 12, 13, 14, 17, 18, 20, 21, 23, onnx.defs.onnx_opset_version())
ML_OPSET = 5
SMALL = (0, 1, 1, 2, 2, 3, 4, -1)
HUGE = (5, 7, 16, 255, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -2, -3, -(2**31), -(2**62), -(2**63))
FLOATS = (0.0, 0.5, 1.0, 2.0, 3.0, -1.0, 1e38, -1e38, 1e-40, float("nan"), float("inf"), float("-inf"))
SIZES = (0, 1, 1, 2, 2, 3, 4, 4, 5, 6, 8, 12, 16, 64, 2**20, None, "N", "M")
TEXTS = (
    "", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID", "linear", "cubic", "nearest", "forward",
    "bidirectional", "DCR", "none", "stretch", "ij,jk->ik", "...ij,jk->...ik", "ii->i", "i->", "->", "...",
    ",", "i,i->i", "a",
)  # fmt: skip
COMMON = frozenset({
    "Shape", "Reshape", "Conv", "Concat", "Gather", "Slice", "Constant", "Cast", "Unsqueeze", "Squeeze",
    "Identity", "Mul", "Add", "Range", "Size", "Split", "Expand", "Transpose", "ConstantOfShape",
})  # fmt: skip
TYPES = {
    "tensor(float)": TensorProto.FLOAT, "tensor(double)": TensorProto.DOUBLE,
    "tensor(float16)": TensorProto.FLOAT16, "tensor(int64)": TensorProto.INT64,
    "tensor(int32)": TensorProto.INT32, "tensor(uint8)": TensorProto.UINT8, "tensor(int8)": TensorProto.INT8,
    "tensor(bool)": TensorProto.BOOL, "tensor(uint64)": TensorProto.UINT64,
}  # fmt: skip
_MOST_INPUTS = 8


def model(chance: random.Random, _: bytes = b"") -> bytes:
    """Return an ONNX file of one to three random nodes; those behind read what those before give."""
    opset = chance.choice(OPSETS)
    every = known(opset)
    common = [schema for schema in every if schema.name in COMMON]
    chosen = [chance.choice(every), *chance.choices(common, k=chance.choice((0, 0, 0, 1, 2)))]
    if chance.random() < 0.3:
        chosen.reverse()
    made = onnx.GraphProto(name="g")
    made.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, _shape(chance)))
    given: list[str] = []
    for schema in chosen:
        read = _inputs(chance, schema, given, made)
        most = min(schema.max_output, schema.min_output + 3)
        written = [f"y{len(given) + i}" for i in range(chance.randint(schema.min_output, most))]
        node = helper.make_node(schema.name, read, written, domain=schema.domain)
        node.attribute.extend(_attributes(chance, schema))
        made.node.append(node)
        given += written
    for name in given:
        kind = chance.choice((TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64))
        made.output.append(helper.make_tensor_value_info(name, kind, [None] * chance.randrange(5)))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    proto = helper.make_model(made, opset_imports=opsets, ir_version=10)
    data: bytes = proto.SerializeToString()
    return data


@functools.cache
def known(opset: int) -> Sequence[OpSchema]:
    """Return the operators of one operator set, and those for classical models."""
    newest: dict[tuple[str, str], OpSchema] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        key, version = (schema.domain, schema.name), ML_OPSET if schema.domain else opset
        if schema.domain not in {"", "ai.onnx.ml"} or schema.since_version > version:
            continue
        if key not in newest or newest[key].since_version < schema.since_version:
            newest[key] = schema
    return [schema for _, schema in sorted(newest.items()) if not schema.deprecated]


def _inputs(
    chance: random.Random, schema: OpSchema, given: Sequence[str], made: onnx.GraphProto
) -> list[str]:
    """Return the names that a node reads; what is new becomes an input or a constant of the graph."""
    names: list[str] = []
    bound: dict[str, str] = {}  # what one letter of the schema stands for
    least = min(schema.min_input, _MOST_INPUTS)
    for i in range(chance.randint(least, max(least, min(schema.max_input, least + 4)))):
        place = schema.inputs[min(i, len(schema.inputs) - 1)]
        optional = place.option == OpSchema.FormalParameterOption.Optional
        if optional and chance.random() < 0.3:
            names.append("")
        elif given and chance.random() < 0.4:
            names.append(chance.choice(given))
        else:
            text = bound.setdefault(place.type_str, chance.choice(sorted(place.types)))
            text = text if chance.random() < 0.96 else chance.choice(sorted(TYPES))
            names.append(f"v{len(made.input)}_{len(made.initializer)}")
            _add(chance, names[-1], text, made)
    return names


def _add(chance: random.Random, name: str, text: str, made: onnx.GraphProto) -> None:
    kind = TYPES.get(text, TensorProto.FLOAT)
    sizes = kind in {TensorProto.INT64, TensorProto.INT32}
    if text in TYPES and chance.random() < (0.6 if sizes else 0.3):
        made.initializer.append(_constant(chance, kind, name))
        return
    tensor = helper.make_tensor_type_proto(kind, _shape(chance))
    if text.startswith("seq"):
        tensor = helper.make_sequence_type_proto(tensor)
    elif text.startswith("optional"):
        tensor = helper.make_optional_type_proto(tensor)
    made.input.append(helper.make_value_info(name, tensor))


def _shape(chance: random.Random) -> list[int | str | None]:
    return chance.choices(SIZES, k=chance.choice((0, 1, 2, 2, 3, 3, 4, 4, 4, 5)))


def _numbers(chance: random.Random, count: int) -> list[int]:
    return chance.choices(SMALL if chance.random() < 0.6 else SMALL + HUGE, k=count)


def _constant(chance: random.Random, kind: int, name: str) -> onnx.TensorProto:
    shape = chance.choice(((), (0,), (1,), (1,), (2,), (3,), (4,), (4,), (5,), (8,), (2, 2), (1, 4)))
    count, dtype = int(np.prod(shape)), helper.tensor_dtype_to_np_dtype(kind)
    with np.errstate(all="ignore"):
        if np.issubdtype(dtype, np.floating):
            array = np.array(chance.choices(FLOATS, k=count)).astype(dtype)
        else:
            array = np.array(_numbers(chance, count), np.int64).astype(dtype)
    return numpy_helper.from_array(array.reshape(shape), name)


def _attributes(chance: random.Random, schema: OpSchema) -> list[AttributeProto]:
    declared = sorted(schema.attributes.items())
    if schema.name == "Constant":  # has one
        declared = [chance.choice(declared)]
    made = []
    for name, attribute in declared:
        if attribute.required or schema.name == "Constant" or chance.random() < 0.5:
            made += _attribute(chance, name, attribute.type.name)
    return made


def _attribute(chance: random.Random, name: str, kind: str) -> list[AttributeProto]:
    count = chance.choice((0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 6))
    choices = {
        "INT": lambda: _numbers(chance, 1)[0],
        "INTS": lambda: _numbers(chance, count),
        "FLOAT": lambda: chance.choice(FLOATS),
        "FLOATS": lambda: chance.choices(FLOATS, k=count),
        "STRING": lambda: chance.choice(TEXTS),
        "STRINGS": lambda: chance.choices(TEXTS, k=count),
        "TENSOR": lambda: _constant(chance, chance.choice(list(TYPES.values())), "t"),
        "GRAPH": lambda: _body(chance),
        "TYPE_PROTO": lambda: helper.make_sequence_type_proto(
            helper.make_tensor_type_proto(TensorProto.FLOAT, _shape(chance))
        ),
    }
    if kind not in choices:
        return []
    return [helper.make_attribute(name, choices[kind](), attr_type=AttributeProto.AttributeType.Value(kind))]


def _body(chance: random.Random) -> onnx.GraphProto:
    """Return a body of a few inputs and outputs, which read those or the graph's."""
    body = onnx.GraphProto(name="body")
    for i in range(chance.choice((0, 0, 1, 2, 3))):
        kind = chance.choice(list(TYPES.values()))
        body.input.append(helper.make_tensor_value_info(f"b{i}", kind, _shape(chance)))
    read = ["x", *(value.name for value in body.input)]
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        name = f"o{chance.getrandbits(30)}"
        body.node.append(
            helper.make_node(chance.choice(("Identity", "Neg", "Shape")), [chance.choice(read)], [name])
        )
        body.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, _shape(chance)))
    return body
