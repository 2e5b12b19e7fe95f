"""What is asked of a build and what comes back, whichever compiler builds; the range of every input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.errors import BadInput, UnsupportedGraph
from se_deploy.options import EngineFeatures
from se_deploy.schema import input_spec
from se_deploy.schema.files import ShapeRange

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_ir as ir

    from se_deploy.plan import Plan
    from se_deploy.targets import Target

MAX_BATCH = 16
"""Largest batch of the default profile; --max-shapes sets another."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What a build may be told; everything has a default that works."""

    targets: tuple[Target, ...] = ()  # () for the default, or this device
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)  # by input name; the rest is derived
    workspace_bytes: int | None = None
    timing_cache: Path | None = None  # read and written by a compiler that times kernels
    more_shapes: tuple[Mapping[str, ShapeRange], ...] = ()  # further optimization profiles, each as `shapes`
    features: EngineFeatures = field(default_factory=EngineFeatures)


@dataclass(frozen=True, slots=True)
class Engine:
    """A built engine and what the compiler said about it."""

    data: bytes
    plan: Plan
    runtime: str  # the name of the backend that built it
    shapes: Mapping[str, ShapeRange]  # of every input
    seconds: float
    workspace_bytes: int | None = None  # as asked for
    warnings: tuple[str, ...] = ()  # the compiler's own, and what was asked for and ignored
    log_errors: tuple[str, ...] = ()  # ERROR lines of a build that succeeded: mostly noise
    skipped_tactics: int = 0  # for want of memory
    free: frozenset[str] = frozenset()  # the inputs whose sizes the graph leaves to the build
    more_shapes: tuple[Mapping[str, ShapeRange], ...] = ()  # of every input, in each further profile
    features: EngineFeatures = field(default_factory=EngineFeatures)
    kept: bool = False  # it was built before, and taken from where it is kept


def profiles(model: ir.Model, given: Mapping[str, ShapeRange]) -> dict[str, ShapeRange]:
    """Return every input's range: as given, else batch 1 to MAX_BATCH and the input spec's height and width.

    Raises: BadInput for a range that does not fit; UnsupportedGraph for a free dimension without one.
    """
    names = [value.name for value in model.graph.inputs]
    for name in given:
        if name not in names:
            raise BadInput(
                f"shapes are given for '{name}', which is no input of the network",
                hint=f"its inputs: {', '.join(str(n) for n in names)}",
            )
    spec = input_spec.read(model.metadata_props)
    result = {}
    for value in model.graph.inputs:
        dims = graph.dims(value)
        if dims is None or value.name is None:
            raise UnsupportedGraph(f"input '{value.name}' has no rank", hint="export it with a shape")
        result[value.name] = _fitting(
            value.name, dims, given.get(value.name) or _derived(value.name, dims, spec)
        )
    return result


def free_inputs(model: ir.Model) -> frozenset[str]:
    """Return the inputs that have a size which the graph leaves open."""
    return frozenset(str(value.name) for value in model.graph.inputs if None in (graph.dims(value) or ()))


def _derived(name: str, dims: tuple[int | None, ...], spec: input_spec.InputSpec | None) -> ShapeRange:
    known = list(dims)
    if spec is not None and spec.name == name and len(dims) == len(spec.shape) + 1:
        known[1:] = [d if d is not None else s for d, s in zip(dims[1:], spec.dims, strict=True)]
    if any(d is None for d in known[1:]):
        raise UnsupportedGraph(
            f"input '{name}' has a free dimension besides the batch: {_text(dims)}",
            hint=f"give its range: --min-shapes {name}:... --opt-shapes {name}:... --max-shapes {name}:...",
        )
    rest = tuple(d for d in known[1:] if d is not None)
    if not known or known[0] is not None:
        whole = (known[0], *rest) if known and known[0] is not None else ()
        return ShapeRange(whole, whole, whole)
    return ShapeRange((1, *rest), (1, *rest), (MAX_BATCH, *rest))


def _fitting(name: str, dims: tuple[int | None, ...], profile: ShapeRange) -> ShapeRange:
    for shape in (profile.min, profile.opt, profile.max):
        if len(shape) != len(dims) or any(d not in (None, s) for d, s in zip(dims, shape, strict=False)):
            raise BadInput(
                f"shape {_text(shape)} does not fit input '{name}' of shape {_text(dims)}",
                hint="give one number for each dimension, the fixed ones as they are",
            )
    if not all(a <= b <= c for a, b, c in zip(profile.min, profile.opt, profile.max, strict=True)):
        raise BadInput(
            f"the shapes of input '{name}' are out of order: {_text(profile.min)} to {_text(profile.max)}",
            hint="each number of --min-shapes <= --opt-shapes <= --max-shapes",
        )
    return profile


def _text(dims: tuple[int | None, ...]) -> str:
    return "x".join("?" if d is None else str(d) for d in dims) or "scalar"
