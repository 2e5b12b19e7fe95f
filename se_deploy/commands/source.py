"""MODEL, whatever it is, becomes a canonical FP32 graph with its census: the way into every verb."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
from msgspec.structs import replace

from se_deploy import comparison, graph, se_blocks
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.errors import BadModel
from se_deploy.frontend import simplify
from se_deploy.options import ImageOptions, NetworkOptions
from se_deploy.passes import canonical
from se_deploy.protocols import silent
from se_deploy.schema import input_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from se_deploy.frontend.zoo import Network
    from se_deploy.protocols import Progress, Session

_CHECK_BATCHES = (2, 5)


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
    max_abs_error: float  # against PyTorch, or against the ONNX file given
    failures: tuple[str, ...]  # where that is outside the FP32 preset
    seed: int
    warnings: tuple[str, ...]


def is_onnx(model: str) -> bool:
    """Tell an ONNX file from a network specification."""
    return model.endswith(".onnx") or (Path(model).is_file() and not model.endswith(".pt2"))


def load_onnx(path: Path, image: ImageOptions) -> ir.Model:
    """Read an ONNX file and give it the input spec that the flags describe."""
    model = graph.load(path)
    own = input_spec.read(model.metadata_props)
    spec = image.applied(own)
    if spec is not None and own is None and len(model.graph.inputs) == 1:
        spec = replace(spec, name=model.graph.inputs[0].name or spec.name)
    if spec is not None:
        input_spec.write(model.metadata_props, spec)
    return model if image.size is None else graph.rewrite(model, _sized(image.size)).model


def _sized(size: tuple[int, ...]) -> Callable[[ir.Model], int]:
    """Give the pass that fixes the only input's free sizes behind the batch; those it has are kept."""

    def fix_input_size(model: ir.Model) -> int:
        if len(model.graph.inputs) != 1:
            return 0
        value = model.graph.inputs[0]
        known = graph.dims(value)
        if known is None or len(known) != 1 + len(size) or None not in known[1:]:
            return 0
        kept = [was if was is not None else now for was, now in zip(known[1:], size, strict=True)]
        value.shape = ir.Shape([value.shape[0] if value.shape else None, *kept])
        return 1

    return fix_input_size


def read(
    spec: str,
    *,
    options: NetworkOptions | None = None,
    image: ImageOptions | None = None,
    progress: Progress = silent,
) -> Source:
    """Export (or load), simplify, canonicalize, count the blocks, and check against where it came from.

    Raises: BadModel, ExportFailed, MissingRuntime, BadInput; each says what to do.
    """
    options, image = options or NetworkOptions(), image or ImageOptions()
    exact = OrtRuntime(optimize=False)
    steps = 4
    progress("export", 0, steps)
    network: Network | None = None
    notes: list[str] = []
    if is_onnx(spec):
        given, exporter = load_fp32(Path(spec), image), "onnx"
    else:
        from se_deploy.frontend import torch_export, zoo  # noqa: PLC0415 - an ONNX file needs no torch

        network = zoo.load(
            spec,
            checkpoint=options.checkpoint,
            model_args=options.model_args,
            pretrained=options.pretrained,
            input_size=options.input_size,
            seed=options.seed,
        )
        exported = torch_export.export(network, opset=options.opset, batch=options.batch)
        given, exporter = exported.model, exported.exporter
        image_spec = image.applied(network.image)
        if image_spec is not None:
            input_spec.write(given.metadata_props, image_spec)
        notes += [*network.warnings, *exported.warnings]
    progress("simplify", 1, steps)
    simplified = simplify.simplify(given, runtime=exact, seed=options.seed)
    progress("canonicalize", 2, steps)
    made = canonical.canonicalize(simplified.model)
    notes += [*simplified.warnings]
    notes += [f"SE block '{no.output}' is not in canonical form: {no.reason}" for no in made.refused]
    left = sum(node.op_type in {"BatchNormalization", "Dropout"} for node in made.model.graph)
    if left:
        notes.append(f"{left} BatchNormalization or Dropout nodes could not be folded away")
    progress("check", 3, steps)
    parity = _compared(network, given, made.model, options.seed)
    progress("check", steps, steps)
    failures = [
        text
        for output in parity.outputs
        if not output.max_abs <= simplify.RESOLUTION  # NaN fails too
        for text in comparison.PRESETS["fp32"].failures(output)
    ]
    notes += [f"the graph differs from its source: {text}" for text in failures]
    return Source(
        spec=spec,
        model=made.model,
        census=se_blocks.detect(made.model),
        network=network,
        exporter=exporter,
        nodes_before=given.graph.num_nodes(),
        counts=made.counts,
        given=given,
        max_abs_error=max(output.max_abs for output in parity.outputs),
        failures=tuple(failures),
        seed=options.seed,
        warnings=tuple(notes),
    )


def load_fp32(path: Path, image: ImageOptions) -> ir.Model:
    """Read an ONNX file that holds neither FP16 weights nor Q/DQ nodes. Raises: BadModel."""
    model = load_onnx(path, image)
    if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph):
        raise BadModel(f"'{path}' is quantized already", hint="start from the FP32 file")
    if any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values()):
        raise BadModel(f"'{path}' is in FP16 already", hint="start from the FP32 file")
    return model


def against(taken: Source, made: ir.Model) -> comparison.Parity:
    """Compare a graph made from `taken` with where that came from, on random inputs."""
    return _compared(taken.network, taken.given, made, taken.seed)


def _compared(network: Network | None, given: ir.Model, made: ir.Model, seed: int) -> comparison.Parity:
    """Compare on random inputs, at two batch sizes where the batch is free."""
    exact = OrtRuntime(optimize=False)
    with exact.open(given) as reference, exact.open(made) as candidate:
        free = all(spec.dims and spec.dims[0] is None for spec in candidate.inputs)
        feeds = [
            simplify.random_feeds(reference.inputs, batch=batch, seed=seed + batch)
            for batch in (_CHECK_BATCHES if free else (1,))
        ]
        truth = reference if network is None else torch_session(network)
        return comparison.compare(truth, candidate, feeds)


def torch_session(network: Network, threads: int = 0, device: str = "cpu") -> Session:
    """Give a session over the network's own module."""
    from se_deploy.backends.pytorch import session as pytorch  # noqa: PLC0415 - an ONNX file needs no torch

    return pytorch.TorchSession(
        network.module,
        network.input_names,
        network.output_names,
        examples=network.examples,
        threads=threads,
        device=device,
    )
