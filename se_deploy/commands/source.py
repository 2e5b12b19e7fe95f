"""MODEL, whatever it is, becomes a canonical FP32 graph with its census: the way into every verb."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
from msgspec.structs import replace

from se_deploy import data, extras, graph, opsets, se_blocks
from se_deploy.backends import registry
from se_deploy.commands import lowering, verifying
from se_deploy.errors import BadInput, BadModel
from se_deploy.frontend import bake, image_input
from se_deploy.options import DEFAULT_OPSET, CalibrationOptions, ImageOptions, NetworkOptions
from se_deploy.protocols import silent
from se_deploy.schema import input_spec, output_kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from se_deploy.commands.verifying import Checker, Truth
    from se_deploy.data import Samples
    from se_deploy.frontend.zoo import Network
    from se_deploy.protocols import Progress
    from se_deploy.schema.common import OutputKind
    from se_deploy.schema.input_spec import InputSpec, Layout
    from se_deploy.signature import DeclaredInput
    from se_deploy.verification import Verified


@dataclass(frozen=True, slots=True)
class Source:
    """A network as a canonical FP32 graph, and how it got there."""

    spec: str
    model: ir.Model
    census: se_blocks.Census
    network: Network | None  # None where MODEL is an ONNX file
    exporter: str  # "dynamo", "torchscript" or "onnx"
    nodes_before: int
    counts: tuple[tuple[str, int], ...]  # what canonicalization did
    given: ir.Model  # as exported, before anything was done to it
    verified: Verified  # against PyTorch, or against the ONNX file given
    check: Checker | None  # for the steps that follow; None with --no-verify
    samples: Samples | None  # the user's data, where it was named
    warnings: tuple[str, ...]
    outside: InputSpec | None = None  # how the network itself takes images, where `model` prepares them


def is_onnx(model: str) -> bool:
    """Whether `model` is an ONNX file and not a network specification."""
    return model.endswith(".onnx") or (Path(model).is_file() and not model.endswith(".pt2"))


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
    if spec is not None:
        input_spec.write(model.metadata_props, spec)
    if image.size is None:
        return model
    layout = taken.layout if isinstance(taken, image_input.ImageInput) else "NCHW"
    return graph.rewrite(model, _sized(image.size, layout)).model


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
    return Converted(made, verifying.of_graph(model), (note,))


def _with_batch(batch: int, spec: str) -> Callable[[ir.Model], int]:
    """Return the pass that freezes the batch of every input. Raises: BadInput where it is another one."""

    def fix_batch(model: ir.Model) -> int:
        for value in model.graph.inputs:
            known = graph.dims(value)
            if not known:  # a scalar counts no samples
                continue
            if known[0] not in (None, batch):
                raise BadInput(
                    f"input '{value.name}' of '{spec}' is frozen at batch {known[0]}, not {batch}",
                    hint="leave --batch out, or export the network again with the batch that you need",
                )
            value.shape = ir.Shape([batch, *list(value.shape or ())[1:]])  # free sizes keep their names
        return 1

    return fix_batch


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


def read(
    spec: str,
    *,
    options: NetworkOptions | None = None,
    calibration: CalibrationOptions | None = None,
    verify: bool = True,
    progress: Progress = silent,
) -> Source:
    """Export (or load), simplify, canonicalize, count the blocks, and verify against where it came from.

    `calibration` names the user's data, which is then verified on too.
    Raises: BadModel, ExportFailed, MissingRuntime, BadInput, BadData, UnsupportedGraph.
    """
    options = options or NetworkOptions()
    image = options.image
    calibration = calibration or CalibrationOptions()
    first = "read" if is_onnx(spec) else "export"
    progress(first, 0, 1)
    network: Network | None = None
    notes: list[str] = []
    truth: Truth | None
    if is_onnx(spec):
        given, exporter = load_fp32(Path(spec), image), "onnx"
        if options.batch is not None:
            given = graph.rewrite(given, _with_batch(options.batch, spec)).model
        lifted = converted(given, spec, options.opset)
        given, truth, notes = lifted.model, lifted.truth, [*lifted.warnings]
    else:
        with extras.needed_for(f"'{spec}'"):
            from se_deploy.frontend import torch_export  # noqa: PLC0415 - an ONNX file needs no torch

        if image.layout is not None:
            raise BadInput(
                f"--layout says how an ONNX file takes its image, and '{spec}' is a network in PyTorch",
                hint="leave --layout out; --bake-preprocessing writes a file that takes NHWC frames",
            )
        network = load_network(spec, options)
        image_spec = image.applied(network.image)
        if calibration.data is not None and image_spec is not None:
            data.require(calibration.data, image_spec)  # the export takes long
        exported = torch_export.export(network, opset=options.opset or DEFAULT_OPSET, batch=options.batch)
        given, exporter = exported.model, exported.exporter
        if image_spec is not None:
            input_spec.write(given.metadata_props, image_spec)
        notes += [*network.warnings, *exported.warnings]
        truth = verifying.of_session(registry.network_session(network))
    outside: InputSpec | None = None
    if options.bake_preprocessing:
        plain, outside = given, input_spec.read(given.metadata_props)
        given = bake.bake_preprocessing(plain)
        if outside is not None:
            truth = verifying.fed_frames(truth or verifying.of_graph(plain), outside)
    if options.kinds:
        _name_outputs(given, options.kinds)
    samples = None if calibration.data is None else lowering.calibration_samples(given, calibration)
    progress(first, 1, 1, f"{given.graph.num_nodes()} nodes")
    check = None
    if verify:
        progress("the source's answers", 0, 1)
        check = verifying.checker(
            given, truth, samples=samples, shapes=options.feeding.shapes, seed=options.seed
        )
        progress("the source's answers", 1, 1)
    progress("canonical form", 0, 1)
    form = verifying.canonical_form(given, check, simplified=True)
    progress("canonical form", 1, 1, f"{form.model.graph.num_nodes()} nodes, {form.verified.summary}")
    notes += form.warnings
    left = sum(node.op_type in {"BatchNormalization", "Dropout"} for node in form.model.graph)
    if left:
        notes.append(f"{left} BatchNormalization or Dropout nodes could not be folded away")
    census = se_blocks.detect(form.model)
    progress("census", 1, 1, f"{len(census.se)} SE blocks")
    return Source(
        spec=spec,
        model=form.model,
        census=census,
        network=network,
        exporter=exporter,
        nodes_before=given.graph.num_nodes(),
        counts=form.counts,
        given=given,
        verified=form.verified,
        check=form.checker,
        samples=samples,
        warnings=tuple(notes),
        outside=outside,
    )


def _name_outputs(model: ir.Model, kinds: Mapping[str, OutputKind]) -> None:
    """Write what outputs are into the graph's metadata. Raises: BadInput for a name that is no output."""
    names = [str(value.name) for value in model.graph.outputs]
    for name, kind in kinds.items():
        if name not in names:
            raise BadInput(
                f"there is no output '{name}' to take as {kind}",
                hint=f"the outputs are {', '.join(names)}",
            )
    output_kinds.write(model.metadata_props, {**output_kinds.read(model.metadata_props), **kinds})


def load_network(spec: str, options: NetworkOptions) -> Network:
    """Return the PyTorch network that `spec` names. Raises: BadModel, BadInput, BadData, MissingRuntime."""
    with extras.needed_for(f"'{spec}'"):
        from se_deploy.frontend import zoo  # noqa: PLC0415 - an ONNX file needs no torch

    return zoo.load(
        spec,
        checkpoint=options.checkpoint,
        model_args=options.model_args,
        pretrained=options.pretrained,
        input_size=options.input_size,
        feeding=options.feeding,
        seed=options.seed,
    )


def load_fp32(path: Path, image: ImageOptions) -> ir.Model:
    """Read an ONNX file that holds neither 16-bit weights nor Q/DQ nodes. Raises: BadModel."""
    model = load_onnx(path, image)
    if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph):
        raise BadModel(f"'{path}' is quantized already", hint="start from the FP32 file")
    for dtype, name in ((ir.DataType.FLOAT16, "FP16"), (ir.DataType.BFLOAT16, "BF16")):
        if any(value.dtype == dtype for value in model.graph.initializers.values()):
            raise BadModel(f"'{path}' is in {name} already", hint="start from the FP32 file")
    return model
