"""MODEL, whatever it is, becomes a canonical FP32 graph with its census: the way into every verb."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from se_deploy import data, extras, graph, se_blocks
from se_deploy.backends import registry
from se_deploy.backends.backend import SessionOptions
from se_deploy.commands import reading, sampling, shapes, verifying
from se_deploy.errors import BadInput, counted
from se_deploy.frontend import bake
from se_deploy.options import DEFAULT_OPSET, CalibrationOptions, NetworkOptions
from se_deploy.protocols import silent
from se_deploy.schema import input_spec, output_kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from se_deploy.commands.verifying import Checker, Truth
    from se_deploy.data import Samples
    from se_deploy.frontend.zoo import Network
    from se_deploy.protocols import Progress
    from se_deploy.schema.common import OutputKind
    from se_deploy.schema.input_spec import InputSpec
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


def _refuse_frozen(model: ir.Model, spec: str) -> None:
    """Refuse a graph without a free batch, which may be in its Reshapes too. Raises: BadInput."""
    firsts = {known[0] for value in model.graph.inputs if (known := graph.dims(value))}
    if firsts and None not in firsts:
        raise BadInput(
            f"'{spec}' is frozen at batch {' and '.join(map(str, sorted(n for n in firsts if n)))}, which "
            "--batch dynamic does not free",
            hint="leave --batch out, or export the network again with a free batch",
        )


def _any_names(_inputs: Sequence[str], _outputs: Sequence[str]) -> None:
    """Take a network whatever its inputs and outputs are called."""


def read(
    spec: str,
    *,
    options: NetworkOptions | None = None,
    calibration: CalibrationOptions | None = None,
    compared_on: Path | None = None,
    verify: bool = True,
    accept: Callable[[Sequence[str], Sequence[str]], None] = _any_names,
    progress: Progress = silent,
) -> Source:
    """Export (or load), simplify, canonicalize, count the blocks, and verify against where it came from.

    `calibration` names the user's data, which is then verified on too; `compared_on` what a later step reads.
    `accept` gets the names of inputs and outputs before the export, and raises what a later step refuses.
    Raises: BadModel, ExportFailed, MissingRuntime, BadInput, BadData, UnsupportedGraph.
    """
    options = options or NetworkOptions()
    image = options.image
    calibration = calibration or CalibrationOptions()
    first = "read" if reading.is_onnx(spec) else "export"
    progress(first, 0, 1)
    network: Network | None = None
    notes: list[str] = []
    truth: Truth | None
    samples: Samples | None = None
    if reading.is_onnx(spec):
        given, exporter = reading.load_fp32(Path(spec), image), "onnx"
        if options.batch is not None:
            given = graph.rewrite(given, _with_batch(options.batch, spec)).model
        if options.free_batch:
            _refuse_frozen(given, spec)
        lifted = reading.converted(given, spec, options.opset)
        given, truth, notes = lifted.model, lifted.truth, [*lifted.warnings]
        accept(shapes.names(given.graph.inputs), shapes.names(given.graph.outputs))
        shapes.refuse_unknown(shapes.names(given.graph.inputs), options.feeding.shapes)
    else:
        with extras.needed_for(f"'{spec}'"):
            from se_deploy.frontend import torch_export  # noqa: PLC0415 - an ONNX file needs no torch

        if image.layout is not None:
            raise BadInput(
                f"--layout says how an ONNX file takes its image, and '{spec}' is a network in PyTorch",
                hint="leave --layout out; --bake-preprocessing writes a file that takes NHWC frames",
            )
        network = load_network(spec, options)
        accept(network.input_names, network.output_names)
        shapes.refuse_unknown(network.input_names, options.feeding.shapes)
        image_spec = image.applied(network.image)
        if image_spec is not None:  # what is wrong with the data is said before the export, which takes long
            reading.check_labels(image, _classes(network))
            samples = sampling.image_samples(image_spec, calibration)
            if compared_on is not None:
                data.require(compared_on, image_spec)
        exported = torch_export.export(network, opset=options.opset or DEFAULT_OPSET, batch=options.batch)
        given, exporter = exported.model, exported.exporter
        if image_spec is not None:
            input_spec.write(given.metadata_props, image_spec)
        notes += [*network.warnings, *exported.warnings]
        one = SessionOptions(threads=1)  # for so few images threads cost more than they give
        truth = verifying.of_session(registry.network_session(network, one))
    outside: InputSpec | None = None
    if options.bake_preprocessing:
        plain, outside = given, input_spec.read(given.metadata_props)
        given = bake.bake_preprocessing(plain)
        if outside is not None:
            truth = verifying.fed_frames(truth or verifying.of_graph(plain), outside)
    if options.kinds:
        _name_outputs(given, options.kinds)
    if calibration.data is not None and (samples is None or options.bake_preprocessing):
        samples = sampling.calibration_samples(given, calibration)
    progress(first, 1, 1, counted(given.graph.num_nodes(), "node"))
    check = None
    if verify:
        progress("the source's answers", 0, 1)
        check = verifying.checker(
            given, truth, samples=samples, shapes=options.feeding.shapes, seed=options.seed
        )
        progress("the source's answers", 1, 1)
    progress("canonical form", 0, 1)
    form = verifying.canonical_form(given, check, simplified=True)
    progress(
        "canonical form", 1, 1, f"{counted(form.model.graph.num_nodes(), 'node')}, {form.verified.summary}"
    )
    notes += form.warnings
    left = sum(node.op_type in {"BatchNormalization", "Dropout"} for node in form.model.graph)
    if left:
        notes.append(f"{counted(left, 'BatchNormalization or Dropout node')} could not be folded away")
    census = se_blocks.detect(form.model)
    notes += census.warnings
    progress("census", 1, 1, counted(len(census.se), "SE block"))
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


def _classes(network: Network) -> int | None:
    """Return how many classes a network tells apart; None where its output is no list of them."""
    shape: tuple[int, ...] = tuple(getattr(network.answer, "shape", ()))
    return int(shape[1]) if len(shape) == 2 else None  # noqa: PLR2004 - (N, classes)


def _name_outputs(model: ir.Model, kinds: Mapping[str, OutputKind]) -> None:
    """Write what outputs are into the graph's metadata. Raises: BadInput for a name that is no output."""
    names = shapes.names(model.graph.outputs)
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
