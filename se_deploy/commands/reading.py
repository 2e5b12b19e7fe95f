"""An ONNX file as a graph that verbs work on: what it is, how it is read, in which operator set.

`inspect` is a look at a file, and needs no more than this: nothing here imports what runs a graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir
from msgspec.structs import replace

from se_deploy import graph, opsets
from se_deploy.backends import registry
from se_deploy.errors import BadInput, BadModel, counted
from se_deploy.frontend import image_input
from se_deploy.options import read_labels
from se_deploy.schema import input_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from se_deploy.commands.verifying import Truth
    from se_deploy.options import ImageOptions, Precision
    from se_deploy.schema.input_spec import Layout
    from se_deploy.signature import DeclaredInput


def is_onnx(model: str) -> bool:
    """Whether `model` is an ONNX file and not a network specification."""
    return model.endswith(".onnx") or (Path(model).is_file() and not model.endswith(".pt2"))


def kind_of(artifact: str | Path) -> Literal["engine", "onnx", "network"]:
    """Return what an argument names, by its ending and by what is there."""
    suffix = Path(artifact).suffix
    if suffix not in {"", ".onnx"} and registry.of_suffix(suffix):
        return "engine"
    return "onnx" if is_onnx(str(artifact)) else "network"


def load_onnx(path: Path, image: ImageOptions) -> ir.Model:
    """Read an ONNX file and give it the input spec that the flags describe."""
    model = graph.load(path)
    opsets.refuse_unknown(model, str(path))
    if image.inputs:
        model = graph.rewrite(model, _declared(image.inputs, path)).model
    own = input_spec.read(model.metadata_props)
    named = own.layout if own is not None and own.is_frames else None
    taken = image_input.read(model, image.layout or named)
    spec = image.applied(image_input.described(own, taken, image.size))
    if spec is not None and own is None and len(model.graph.inputs) == 1:
        spec = replace(spec, name=model.graph.inputs[0].name or spec.name)
    check_labels(image, _classes(model))
    if spec is not None:
        input_spec.write(model.metadata_props, spec)
    if image.size is None:
        return model
    layout = taken.layout if isinstance(taken, image_input.ImageInput) else "NCHW"
    return graph.rewrite(model, _sized(image.size, layout)).model


def check_labels(image: ImageOptions, classes: int | None) -> None:
    """Refuse --labels that would be put to the wrong classes. Raises: BadInput.

    `classes`: how many there are; None where the outputs do not say it.
    """
    names = () if image.labels is None else read_labels(image.labels)
    if names and classes not in (None, 1, len(names)):  # one number is a class and its opposite, or a score
        raise BadInput(
            f"--labels names {counted(len(names), 'label')} for {counted(classes, 'class')}",
            hint=f"name a file of {counted(classes, 'label')}, one a line, with --labels",
        )


def _classes(model: ir.Model) -> int | None:
    """Return how many classes the only output (N, classes) tells apart; None for any other outputs."""
    known = graph.dims(model.graph.outputs[0]) if len(model.graph.outputs) == 1 else None
    return known[1] if known is not None and len(known) == 2 else None  # noqa: PLR2004 - (N, classes)


def _declared(inputs: Sequence[DeclaredInput], path: Path) -> Callable[[ir.Model], int]:
    """Return the pass that settles the sizes of inputs by their declaration. Raises: BadInput."""

    def declare_inputs(model: ir.Model) -> int:
        by_name = {value.name: value for value in model.graph.inputs}
        for one in inputs:
            value = by_name.get(one.name)
            if value is None:
                names = ", ".join(f"'{name}'" for name in by_name)
                raise BadInput(f"'{path}' has no input '{one.name}'", hint=f"its inputs: {names}")
            known = graph.dims(value)
            fits = known is None or (
                len(known) == len(one.dims)
                and all(isinstance(d, str) or k in (None, d) for d, k in zip(one.dims, known, strict=True))
            )
            typed = value.dtype is None or str(value.dtype.numpy()) == one.dtype
            if not fits or not typed:
                shape = "x".join("?" if d is None else str(d) for d in known or ()) or "scalar"
                kind = "" if value.dtype is None else f" of {value.dtype.numpy()}"
                raise BadInput(
                    f"input '{one.name}' of '{path}' is {shape}{kind}, which is not {one}",
                    hint="declare its fixed sizes and its type as they are; free ones are yours to settle",
                )
            was = known or (None,) * len(one.dims)
            value.shape = ir.Shape([k if k is not None else d for d, k in zip(one.dims, was, strict=True)])
        return len(inputs)

    return declare_inputs


def _sized(size: tuple[int, ...], layout: Layout) -> Callable[[ir.Model], int]:
    """Return the pass that fixes the only input's free sizes behind the batch.

    Raises: BadInput where `size` is not what the input takes.
    """
    said = "x".join(map(str, size))
    if len(size) == 3:  # noqa: PLR2004 - (C, H, W)
        size = input_spec.in_layout((size[0], size[1], size[2]), layout)

    def fix_input_size(model: ir.Model) -> int:
        if len(model.graph.inputs) != 1:
            return 0
        value = model.graph.inputs[0]
        known = graph.dims(value)
        if known is None:
            return 0
        if len(known) != 1 + len(size) or any(
            d not in (None, n) for d, n in zip(known[1:], size, strict=True)
        ):
            dims = "x".join("?" if d is None else str(d) for d in known) or "scalar"
            raise BadInput(
                f"input '{value.name}' is {dims}, which --input-size {said} does not fit",
                hint="give its fixed sizes as they are, without the batch; free ones are yours to settle",
            )
        if None not in known[1:]:
            return 0
        value.shape = ir.Shape([value.shape[0] if value.shape else None, *size])
        return 1

    return fix_input_size


def load_fp32(path: Path, image: ImageOptions) -> ir.Model:
    """Read an ONNX file that holds neither 16-bit weights nor Q/DQ nodes. Raises: BadModel."""
    model = load_onnx(path, image)
    if is_quantized(model):
        raise BadModel(f"'{path}' is quantized already", hint="start from the FP32 file")
    for dtype, name in ((ir.DataType.FLOAT16, "FP16"), (ir.DataType.BFLOAT16, "BF16")):
        if any(value.dtype == dtype for value in model.graph.initializers.values()):
            raise BadModel(f"'{path}' is in {name} already", hint="start from the FP32 file")
    return model


@dataclass(frozen=True, slots=True)
class Converted:
    """A graph in an operator set that every step works on, and whether it came so."""

    model: ir.Model
    truth: Truth | None  # what it must equal: the graph as it came; None where nothing was converted
    warnings: tuple[str, ...]


def converted(model: ir.Model, name: str, wanted: int | None = None) -> Converted:
    """Bring a graph to operator set `wanted`, or out of one that is too old for the tool to work on.

    Raises: UnsupportedGraph where onnx cannot convert it.
    """
    before = graph.opset(model)
    version = max(before, opsets.OWN) if wanted is None else wanted
    if version == before:
        return Converted(model, None, ())
    made = opsets.converted(model, version)
    note = f"'{name}' has operator set {before}: onnx's version converter brought it to {version}"
    from se_deploy.commands import verifying  # noqa: PLC0415 - what it runs on, for these files only

    return Converted(made, verifying.of_graph(model), (note,))


def is_quantized(model: ir.Model) -> bool:
    """Whether a graph holds Q/DQ nodes."""
    return any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph)


def precision_of(model: ir.Model) -> Precision:
    """Read a graph's precision off its tensors: Q/DQ nodes, FP16 or BF16 weights, or none of them."""
    if any(node.op_type == "QuantizeLinear" for node in model.graph):
        return "int8"
    types = {value.dtype for value in model.graph.initializers.values()}
    if ir.DataType.FLOAT16 in types:
        return "fp16"
    return "bf16" if ir.DataType.BFLOAT16 in types else "fp32"
