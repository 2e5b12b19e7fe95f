"""A PyTorch network becomes an ONNX graph; the only caller of `torch.onnx`."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import onnx
import onnx_ir as ir
import torch

from se_deploy import collector, graph, locks, signature
from se_deploy.errors import ExportFailed
from se_deploy.frontend import in_place, torch_threads
from se_deploy.schema import input_spec, provenance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from se_deploy.frontend.zoo import Network

DYNAMO_MIN_OPSET = 18  # below it the dynamo exporter writes 18 without a word
TORCHSCRIPT_MAX_OPSET = 20
BATCH = "batch"  # what the batch is called in the file
_TAKEN_APART = "hardswish"  # the layer whose in-place form takes long to trace; for others a look costs more
_MOST = 65535  # of a free dimension: the exporter wants a bound


@dataclass(frozen=True, slots=True)
class Exported:
    """The graph as the exporter wrote it, tidied, and which exporter that was."""

    model: ir.Model
    exporter: Literal["dynamo", "torchscript"]
    warnings: tuple[str, ...]


@torch_threads.limited(1)  # it runs many small operators, and no large one
def export(network: Network, *, opset: int = 20, batch: int | None = None) -> Exported:
    """Export with a dynamic batch, or frozen at `batch`; dynamo first, TorchScript where that fails.

    Raises: ExportFailed where neither can, or where the written opset is not the one asked for.
    """
    notes: list[str] = []
    failures: list[str] = []
    for exporter, write in (("dynamo", _dynamo), ("torchscript", _torchscript)):
        if exporter == "dynamo" and opset < DYNAMO_MIN_OPSET:
            notes.append(f"opset {opset} is below what the dynamo exporter writes: TorchScript exporter used")
            continue
        if exporter == "torchscript" and opset > TORCHSCRIPT_MAX_OPSET:
            failures.append(f"torchscript: writes opset {TORCHSCRIPT_MAX_OPSET} at most")
            continue
        try:
            with _silence() as heard, collector.only_new():
                model = write(network, opset, batch)
        except Exception as e:  # noqa: BLE001 - exporters raise anything; all of it is reported below
            failures.append(f"{exporter}: {_reason(e)}")
            continue
        frozen = _frozen(model, network, batch)
        if frozen:
            failures.append(f"{exporter}: froze the free dimension {frozen}")
            continue
        if graph.opset(model) != opset:
            failures.append(f"{exporter}: wrote opset {graph.opset(model)} instead of {opset}")
            continue
        if failures:
            notes.append(f"the dynamo exporter failed ({failures[0]}): TorchScript exporter used")
        notes += _branches(heard)
        if network.image is not None:
            input_spec.write(model.metadata_props, network.image)
        model.metadata_props[provenance.NETWORK_KEY] = network.spec
        model.metadata_props[provenance.WEIGHTS_KEY] = network.weights
        return Exported(model, "dynamo" if exporter == "dynamo" else "torchscript", tuple(notes))
    raise ExportFailed(
        f"'{network.spec}' cannot be exported at opset {opset}: {'; '.join(failures)}",
        hint="try --batch 1, another --opset, or export it yourself and pass the ONNX file",
    )


def _dynamo(network: Network, opset: int, batch: int | None) -> ir.Model:
    if network.program is not None:  # its shapes were settled when it was made
        program = torch.onnx.export(
            network.program,
            dynamo=True,
            opset_version=opset,
            input_names=list(network.input_names),
            output_names=list(network.output_names),
            verbose=False,
        )
        if program is None:
            raise RuntimeError("the exporter gave no program")
        return _with_batch(_finish(program.model_proto), network, batch)
    sizes = {name: torch.export.Dim(_symbol(name), min=1, max=_MOST) for name in _free(network, batch)}
    shapes = None
    if sizes:
        shapes = tuple(
            {axis: sizes[name] for axis, name in one.free.items() if name in sizes} for one in network.inputs
        )
    with in_place.out_of_place(network.module, network.examples, _TAKEN_APART):
        program = torch.onnx.export(
            network.module,
            _examples(network, batch),
            dynamo=True,
            opset_version=opset,
            input_names=list(network.input_names),
            output_names=list(network.output_names),
            dynamic_shapes=shapes,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter gave no program")
    return _finish(program.model_proto)


def _torchscript(network: Network, opset: int, batch: int | None) -> ir.Model:
    if network.program is not None:
        raise TypeError("it takes no torch.export program")
    free = _free(network, batch)
    axes = {
        one.name: {axis: _symbol(name) for axis, name in one.free.items() if name in free}
        for one in network.inputs
    }
    if batch is None:  # sizes of outputs behind the batch are inferred
        axes |= {name: {0: BATCH} for name in network.output_names}
    with locks.scratch() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            network.module,
            _examples(network, batch),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=list(network.input_names),
            output_names=list(network.output_names),
            dynamic_axes=axes if free else None,
            do_constant_folding=True,
        )
        return _finish(onnx.load(path))


def _examples(network: Network, batch: int | None) -> tuple[torch.Tensor, ...]:
    if batch is None:
        return network.examples
    return tuple(
        x[:1].expand(batch, *x.shape[1:]).contiguous() if one.dims[:1] == (signature.BATCH,) else x
        for x, one in zip(network.examples, network.inputs, strict=True)
    )


def _free(network: Network, batch: int | None) -> tuple[str, ...]:
    """Return the names of the dimensions that the file leaves free."""
    names = signature.free_names(network.inputs)
    batched = any(one.dims[:1] == (signature.BATCH,) for one in network.inputs)
    return (signature.BATCH, *names) if batch is None and batched else names


def _symbol(name: str) -> str:
    return BATCH if name == signature.BATCH else name


def _frozen(model: ir.Model, network: Network, batch: int | None) -> str | None:
    """Return which dimension of which input should be free and is not; None where all are as they should."""
    free = _free(network, batch)
    for value, one in zip(model.graph.inputs, network.inputs, strict=True):
        dims = graph.dims(value)
        for axis, name in one.free.items():
            if name in free and (dims is None or dims[axis] is not None):
                return f"{name} of '{one.name}'"
    return None


def _with_batch(model: ir.Model, network: Network, batch: int | None) -> ir.Model:
    """Freeze the batch of a program's graph, where one is asked for."""

    def fix_batch(copy: ir.Model) -> int:
        batched = [
            value
            for value, one in zip(copy.graph.inputs, network.inputs, strict=True)
            if one.dims[:1] == (signature.BATCH,) and value.shape is not None
        ]
        for value in batched:
            value.shape = ir.Shape([batch, *list(value.shape or ())[1:]])
        return len(batched)

    return model if batch is None else graph.rewrite(model, fix_batch).model


def _finish(proto: onnx.ModelProto) -> ir.Model:
    """Drop the exporter's notes, which hold paths of the machine it ran on, and tidy."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    return graph.tidy(graph.inline(ir.from_proto(proto)))


def _branches(heard: Sequence[warnings.WarningMessage]) -> list[str]:
    """Return a note where a trace took one side of a condition: it holds that side whatever it is fed."""
    lines = [f"{Path(one.filename).name}:{one.lineno}" for one in heard if _CONDITION in str(one.message)]
    places = list(dict.fromkeys(lines))
    if not places:
        return []
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    what = f"the condition at {places[0]}{more} is decided once, as for the example"
    return [f"{what}: inputs or sizes that decide it otherwise get other answers than PyTorch's"]


_CONDITION = "to a Python boolean"  # in what torch says of a tensor that is asked whether it is true


@contextlib.contextmanager
def _silence() -> Iterator[list[warnings.WarningMessage]]:
    """Keep the exporters' chatter off both streams, and give what a trace warned of."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            _no_native_stdout(),
            warnings.catch_warnings(record=True) as heard,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", message=f".*{_CONDITION}")
            yield heard
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _no_native_stdout() -> Iterator[None]:
    """Drop what C++ writes to stdout: a failed TorchScript export dumps its whole graph before our JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # what C++ still holds belongs to the file that is dropped
        os.dup2(kept, 1)
        os.close(kept)


def _reason(error: BaseException) -> str:
    """First line of the innermost cause: the exporters wrap it in pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
