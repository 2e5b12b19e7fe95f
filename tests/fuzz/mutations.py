"""Good files made bad: bytes, and the structure that checksums and parsers would otherwise hide."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError

from fuzz import operators

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    Mutate = Callable[[random.Random, bytes], bytes]

NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    255,
    256,
    65_535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    -1,
    -2,
    -(2**31),
    -(2**62),
)
TEXTS = (
    "", " ", "\x1b[31m", "a\nb", "\u202e", "\ud800", "../../x", "/dev/zero", "x" * 5000, "NaN", "é",
    "\0", "x", "w0", "1e400",
)  # fmt: skip
WORDS = (
    b"\0",
    b"\xff",
    b"\n",
    b"\r",
    b"\t",
    b"\x1b",
    b"\x1f\x8b",
    b"PK\3\4",
    b"9" * 30,
    b"1e999",
    b"[" * 3000,
    b"{",
    b"\xed\xa0\x80",
)
_MOST = 1 << 20  # bytes of a case


def mutated(chance: random.Random, form: str, seeds: Sequence[bytes]) -> bytes:
    """Return one seed with a few changes, by its structure or by its bytes."""
    data = chance.choice(seeds)
    structured = STRUCTURED.get(form)
    if structured is not None and chance.random() < 0.7:
        data = structured(chance, data)
        if chance.random() < 0.8:
            return data[:_MOST]
    return _bytes(chance, data, chance.choice(seeds))[:_MOST]


def _bytes(chance: random.Random, data: bytes, other: bytes = b"") -> bytes:
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(made) + 1)
        end = min(len(made), at + chance.choice((1, 2, 4, 8, 16, 64)))
        match chance.randrange(9):
            case 0 if made:
                at = min(at, len(made) - 1)
                made[at] ^= 1 << chance.randrange(8)
            case 1:
                made[at:end] = chance.randbytes(end - at)
            case 2:
                made[at:at] = chance.choice(WORDS)
            case 3:
                del made[at:end]
            case 4:
                made[at:at] = made[at:end] * chance.choice((1, 2, 100))
            case 5:
                del made[at:]
            case 6:
                start = chance.randrange(len(other) + 1)
                made[at:end] = other[start : start + chance.choice((4, 64, len(other)))]
            case 7:
                order, (size, code) = chance.choice("<>"), chance.choice(((2, "H"), (4, "I"), (8, "Q")))
                made[at : at + size] = struct.pack(order + code, chance.choice(NUMBERS) % 2 ** (8 * size))
            case _:
                made[at:end] = str(chance.choice(NUMBERS)).encode()
    return bytes(made)


# JSON


def _any_value(chance: random.Random) -> Any:
    match chance.randrange(8):
        case 0:
            return chance.choice(NUMBERS)
        case 1:
            return chance.choice(TEXTS)
        case 2:
            return chance.choice((None, True, False))
        case 3:
            return chance.choice((1e308, -1e308, 1e-320, 0.5, float("nan"), float("inf")))
        case 4:
            return []
        case 5:
            return {}
        case 6:
            return [chance.choice(NUMBERS)] * chance.choice((1, 3, 4, 1000))
        case _:
            deep: Any = 1
            for _ in range(chance.choice((2, 50, 900))):
                deep = [deep] if chance.random() < 0.5 else {"x": deep}
            return deep


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) below a JSON value."""
    found, left = [], [value]
    while left:
        at = left.pop()
        keys = list(at) if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else ()
        for key in keys:
            found.append((at, key))
            left.append(at[key])
    return found


def _json(chance: random.Random, data: bytes) -> bytes:
    if chance.random() < 0.02:
        opening, closing = chance.choice((("[", "]"), ('{"x":', "}")))
        depth = chance.choice((500, 2000, 100_000))
        return (opening * depth + "1" + closing * depth).encode()
    try:
        value = json.loads(data)
    except ValueError:
        return data
    for _ in range(chance.choice((1, 1, 2, 4))):
        places = _places(value)
        if not places or chance.random() < 0.03:
            value = _any_value(chance)
            continue
        at, key = chance.choice(places)
        match chance.randrange(4):
            case 0:
                del at[key]
            case 1 if isinstance(at, dict):
                at[chance.choice(TEXTS)] = at.pop(key)
            case 2:
                other, name = chance.choice(places)
                there = name in other or (
                    isinstance(other, list) and isinstance(name, int) and name < len(other)
                )
                try:
                    copied = json.dumps(other[name] if there else 0)
                except RecursionError:
                    return data
                if len(copied) < 100_000:
                    at[key] = json.loads(copied)
            case _:
                at[key] = _any_value(chance)
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return data


def _toml(chance: random.Random, data: bytes) -> bytes:
    lines = data.decode().splitlines()
    at = chance.randrange(len(lines))
    name, equals, _ = lines[at].partition(" = ")
    values = (
        "[" * chance.choice((2, 500, 5000)), "{a = " * chance.choice((2, 900)), "1e400", "nan", "-inf",
        str(2**70),
        '"\\u001b[31m"', '"\\ud800"', "1979-05-27", "true", "[]", "{}", '""', '["a", 1]', "0x" + "f" * 5000,
        "9" * 5000, '"' + "x" * 100_000 + '"', "[[]]", "[1, 2, 3]", '"%s"' % ("../" * 2000),
    )  # fmt: skip
    match chance.randrange(4):
        case 0 if equals:
            lines[at] = f"{name} = {chance.choice(values)}"
        case 1:
            lines.insert(at, ".".join("a" * chance.choice((2, 1000, 20_000))) + " = 1")
        case 2:
            lines.insert(at, "[" + ".".join("a" * chance.choice((2, 1000, 20_000))) + "]")
        case _:
            lines.insert(at, chance.choice(lines))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


# Containers: what is inside is changed, and the checksums are those of what it then is


def _gzip(chance: random.Random, data: bytes) -> bytes:
    if chance.random() < 0.05:
        return gzip.compress(gzip.decompress(data)[:16] + bytes(chance.choice((10**6, 10**8))), 1)
    return gzip.compress(_bytes(chance, gzip.decompress(data)))


def _zip(chance: random.Random, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as given, zipfile.ZipFile(out, "w") as made:
        members = given.infolist()
        chosen = chance.randrange(len(members))
        for n, member in enumerate(members):
            content = given.read(member)
            if n == chosen:
                if chance.random() < 0.1:
                    continue
                content = _bytes(chance, content)
                if chance.random() < 0.1:
                    member.filename = chance.choice(
                        ("x.npy", "../../x", "/abs", "a\nb", "\x1b[31m.npy", "n" * 5000)
                    )
            method = chance.choice(
                (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
            )
            made.writestr(member.filename, content, member.compress_type if chance.random() < 0.7 else method)
    if chance.random() < 0.3:
        return _bytes(chance, out.getvalue())
    return out.getvalue()


def _tar(chance: random.Random, data: bytes) -> bytes:
    made = bytearray(data)
    heads = [at for at in range(0, len(made), 512) if made[at + 257 : at + 262] == b"ustar"]
    at = chance.choice(heads)
    start, size = chance.choice(
        ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (263, 2), (345, 155))
    )
    text = chance.choice(TEXTS).encode("utf-8", "replace")
    huge, large = b"\x80" + b"\xff" * (size - 1), b"\x80" + bytes(max(0, size - 2)) + b"\x40"
    kind = chance.choice(b"01234567xgLKSDV\0").to_bytes(1, "big") * size
    field = chance.choice((bytes(size), b"7" * size, chance.randbytes(size), huge, large, kind, text))
    made[at + start : at + start + size] = field[:size].ljust(size, b"\0")
    made[at + 148 : at + 156] = b" " * 8
    made[at + 148 : at + 156] = b"%06o\0 " % sum(made[at : at + 512])
    return bytes(made)


def _png(chance: random.Random, data: bytes) -> bytes:
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + size]])
        at += 12 + size
    chosen = chance.randrange(len(chunks))
    match chance.randrange(5):
        case 0:
            sides = [
                struct.pack(">I", chance.choice((0, 1, 1, 9, 65_000, 65_000, 2**31 - 1))) for _ in range(2)
            ]
            chunks[0][1] = b"".join(sides) + chunks[0][1][8:]
        case 1:
            kind = chance.choice(
                (
                    b"tRNS",
                    b"PLTE",
                    b"iCCP",
                    b"zTXt",
                    b"iTXt",
                    b"eXIf",
                    b"acTL",
                    b"fcTL",
                    b"fdAT",
                    b"gAMA",
                    b"IDAT",
                )
            )
            content = chance.choice(
                (b"", bytes(4), chance.randbytes(30), b"a\0\0" + zlib.compress(bytes(10**7)))
            )
            chunks.insert(chosen, [kind, content])
        case 2:
            del chunks[chosen]
        case _:
            chunks[chosen][1] = _bytes(chance, chunks[chosen][1])
    whole = b"".join(
        len(c).to_bytes(4, "big") + kind + c + zlib.crc32(kind + c).to_bytes(4, "big") for kind, c in chunks
    )
    return data[:8] + whole


# ONNX: fields of the messages


def _messages(message: Any) -> list[Any]:
    found, left = [], [message]
    while left:
        at = left.pop()
        found.append(at)
        for field, value in at.ListFields():
            if field.message_type is not None:
                left.extend(value if field.is_repeated else [value])
    return found


def _onnx(chance: random.Random, data: bytes) -> bytes:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return data
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        message = chance.choice(_messages(model))
        fields = [field for field, _ in message.ListFields()]
        if chance.random() < 0.15 or not fields:
            fields = [f for f in message.DESCRIPTOR.fields if f.message_type is None]
        if fields:
            _change(chance, message, chance.choice(fields), model)
    return model.SerializeToString()


def _change(chance: random.Random, message: Any, field: Any, model: Any) -> None:
    if chance.random() < 0.1:
        message.ClearField(field.name)
        return
    if not field.is_repeated:
        if field.message_type is None:
            setattr(message, field.name, _scalar(chance, field, model))
        return
    values = getattr(message, field.name)
    at = chance.randrange(len(values)) if values else 0
    match chance.randrange(4):
        case 0 if values:
            del values[at]
        case 1 if values:
            values.extend([values[chance.randrange(len(values))]] * chance.choice((1, 1, 2, 40)))
        case 2 if field.message_type is None:
            values.append(_scalar(chance, field, model))
        case _ if values and field.message_type is None:
            values[at] = _scalar(chance, field, model)
        case _ if values:
            last = [value.SerializeToString() for value in values]
            chance.shuffle(last)
            for value, content in zip(values, last, strict=True):
                value.ParseFromString(content)


def _scalar(chance: random.Random, field: Any, model: Any) -> Any:
    kinds = FieldDescriptor
    if field.type == kinds.TYPE_BYTES:
        return chance.choice(
            (
                b"",
                bytes(3),
                chance.randbytes(chance.choice((4, 12, 64))),
                b"\xff\xfe",
                b"/dev/zero",
                b"\x1b[31m\n",
            )
        )
    if field.type == kinds.TYPE_STRING:
        names = [n.op_type for n in model.graph.node] + [
            v for n in model.graph.node for v in (*n.input, *n.output)
        ]
        operators = [
            "Range",
            "ConstantOfShape",
            "Expand",
            "Tile",
            "Loop",
            "Transpose",
            "Reshape",
            "Softmax",
            "Conv",
            "Sum",
            "Pad",
            "Gather",
        ]
        texts = [t for t in TEXTS if t != "\ud800"]
        return chance.choice((chance.choice(texts), chance.choice(names or ["x"]), chance.choice(operators)))
    if field.type in {kinds.TYPE_FLOAT, kinds.TYPE_DOUBLE}:
        return chance.choice((0.0, -1.0, 1e38, float("nan"), float("inf"), 1e-40))
    if field.type == kinds.TYPE_ENUM:
        return chance.choice([value.number for value in field.enum_type.values])
    if field.type == kinds.TYPE_INT32:
        return chance.choice([n for n in NUMBERS if -(2**31) <= n < 2**31])
    return chance.choice([n for n in NUMBERS if n >= 0 or field.type == kinds.TYPE_INT64])


STRUCTURED: dict[str, Mutate] = {
    "json": _json, "toml": _toml, "gzip": _gzip, "zip": _zip, "tar": _tar, "png": _png, "onnx": _onnx,
    "operators": operators.model,
}  # fmt: skip
assert tarfile.BLOCKSIZE == 512
