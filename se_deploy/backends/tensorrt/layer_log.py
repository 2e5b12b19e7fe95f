"""Reads the layer list that TensorRT-RTX writes to its log while it builds, without a device.

One line a layer, in the text form of the engine inspector:
`Name: N, LayerType: T, Inputs: [ { Name: .., Dimensions: [..], .. }], Constants: [..], Outputs: [..],
TacticName: .., StreamId: 0, Metadata: [ONNX Layer: A][ONNX Layer: B]`. Names may hold anything but a newline.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from se_deploy.errors import BuildFailed
from se_deploy.plan import SIZE_BYTES, Kernel, PlanTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

DTYPES = {
    "float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16", "bf16": "bfloat16",
    "fp8": "float8e4m3", "e4m3": "float8e4m3", "fp4": "float4", "e2m1": "float4", "e8m0": "uint8",
    "boolean": "bool", "double": "float64",
}  # fmt: skip
"""TensorRT's names of element types, lower case, where they are not our own."""

_NO_LAUNCH = frozenset({"shape_call", "signal", "wait"})
"""Layers that launch nothing: host-side shapes, and what streams tell each other."""

_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[(?P<outputs>.*?)\], "
    r"TacticName: .*?, Metadata: ?(?P<metadata>.*)"
)
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<dims>[-\d, ]*)\]"
    r"(?:, Strides: \[[-\d, ]*\])?(?:, StrideOrder: \[(?P<order>[-\d, ]*)\])?"
    r".*?Datatype: (?P<dtype>\w+)"
)
_LAYOUTS: dict[tuple[int, ...], str] = {
    (3, 2, 1, 0): "nchw",
    (3, 0, 2, 1): "nhwc",
}  # by the rank of each dimension's stride
_ONNX_LAYER = "[ONNX Layer: "
_OTHER_PROFILE = re.compile(r" \[profile [1-9]\d*\]")
_COMPILED_GRAPH = re.compile(r"_(myl\d+)_\d+$")
"""How the compiler ends the names of all kernels of one graph, which is of one profile."""


def parse_layers(log: str) -> tuple[Kernel, ...]:
    """Read every layer line of `log`, in order.

    Raises: BuildFailed where a line does not have the form above, or an element type is unknown.
    """
    lines = [line for line in log.splitlines() if line.startswith("Name: ") and ", LayerType: " in line]
    return tuple(_kernel(line) for line in lines)


def first_profile(kernels: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """Return the kernels of the first optimization profile: each has its own, in one list.

    Names and tensors of the others say "[profile 1]"; a kernel between them is known by its graph.
    """
    others = [k for k in kernels if any(map(_OTHER_PROFILE.search, _named(k)))]
    graphs = {match[1] for k in others if (match := _COMPILED_GRAPH.search(k.name))}
    apart = {id(kernel) for kernel in others}

    def is_first(kernel: Kernel) -> bool:
        match = _COMPILED_GRAPH.search(kernel.name)
        return id(kernel) not in apart and (match is None or match[1] not in graphs)

    return tuple(filter(is_first, kernels))


def _named(kernel: Kernel) -> list[str]:
    return [kernel.name, *(tensor.name for tensor in (*kernel.inputs, *kernel.outputs))]


def dtype_of(word: str) -> str:
    """Translate TensorRT's name of an element type to a key of plan.SIZE_BYTES."""
    name = DTYPES.get(word.lower(), word.lower())
    if name not in SIZE_BYTES:
        raise BuildFailed(
            f"the compiler's layer list names an element type '{word}' that is not known",
            hint="report it with the version of the compiler",
        )
    return name


def onnx_nodes(metadata: str) -> tuple[str, ...]:
    r"""Take the node names out of "[ONNX Layer: A]\x1f[ONNX Layer: B]"; names may hold brackets."""
    chunks = metadata.split(_ONNX_LAYER)[1:]
    return tuple(dict.fromkeys(chunk.rstrip("\x1e\x1f \t").removesuffix("]") for chunk in chunks))


def _kernel(line: str) -> Kernel:
    match = _LAYER.fullmatch(line)
    if match is None:
        raise BuildFailed(
            f"a line of the compiler's layer list cannot be read: {line[:120]}",
            hint="report it with the version of the compiler",
        )
    try:
        return _read(match)
    except ValueError as e:
        raise BuildFailed(
            f"a line of the compiler's layer list holds no sizes: {e}",
            hint="report it with the version of the compiler",
        ) from e


def _read(match: re.Match[str]) -> Kernel:
    return Kernel(
        name=match["name"],
        kind=match["kind"],
        inputs=_tensors(match["inputs"]),
        outputs=_tensors(match["outputs"]),
        onnx_nodes=onnx_nodes(match["metadata"]),
        constants=_tensors(match["constants"] or ""),
        host_only=match["kind"] in _NO_LAUNCH,
    )


def _tensors(text: str) -> tuple[PlanTensor, ...]:
    return tuple(_tensor(match) for match in _TENSOR.finditer(text))


def _tensor(match: re.Match[str]) -> PlanTensor:
    layout = _LAYOUTS.get(_ints(match["order"] or ""), "")
    return PlanTensor(match["name"], dtype_of(match["dtype"]), _ints(match["dims"]), layout)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word.strip())
