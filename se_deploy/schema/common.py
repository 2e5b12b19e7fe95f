"""What several commands' objects have in common: the head, SE blocks, plans, verdicts."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

import se_deploy

Count = Annotated[int, Meta(ge=0)]
Amount = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Dims = tuple[int, ...]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Method = Literal["minmax", "percentile", "entropy", "mse"]  # of choosing INT8 ranges
FusionVerdict = Literal["fused", "split", "fallback"]
OutputKind = Literal["logits", "labels", "mask", "boxes", "scores", "embedding", "values"]
GateName = Literal["parity", "fusion", "precision", "latency", "chain", "sweep"]


class Result(Struct, frozen=True, kw_only=True, tag_field="schema"):
    """The head of every object that a command prints."""

    tool_version: str
    warnings: tuple[str, ...]


class Block(Struct, frozen=True, kw_only=True):
    """One SE block, or another pooled channel attention, of the census; `ratio` is channels over reduced."""

    output: str
    kind: str
    channels: Count
    reduced: Count | None
    ratio: float | None
    activation: str
    gate: str
    form: Literal["conv", "linear"]
    spelling: tuple[str, ...]
    squeeze_input: str
    scale_node: str
    params: Count
    placement: str | None = None
    followed_by: str | None = None


class Rejected(Struct, frozen=True, kw_only=True):
    """A candidate that is no block, and why."""

    output: str
    reason: str


class PlanLayer(Struct, frozen=True, kw_only=True):
    """One kernel of a plan; inputs and outputs are pairs of element type and dims."""

    name: str
    kind: str
    inputs: tuple[tuple[str, Dims], ...]
    outputs: tuple[tuple[str, Dims], ...]
    onnx_nodes: tuple[str, ...]


class PlanBlock(Struct, frozen=True, kw_only=True):
    """What a plan makes of one SE block; bytes per image."""

    output: str
    verdict: FusionVerdict
    kernels: Count
    activation_bytes: Count
    reasons: tuple[str, ...]
    layers: tuple[str, ...] = ()  # names of those of the plan that compute it


class WithoutSE(Struct, frozen=True, kw_only=True):
    """The plan of the same network without its gates."""

    kernels: Count
    activation_bytes: Count | None


class Totals(Struct, frozen=True, kw_only=True):
    """A plan in numbers and what the SE blocks cost in it; `tax` 0.17 is 17 % more bytes than without."""

    kernels: Count
    activation_bytes: Count
    weight_bytes: Count | None = None
    se_kernels: Count
    se_bytes: Count
    se_share: float | None = None
    tax: float | None = None
    without_se: WithoutSE | None = None


class Plan(Struct, frozen=True, kw_only=True):
    """What a compiler would run; activation bytes per image, counted at `shapes` where they are given."""

    runtime: str
    version: str
    target: str
    precision: Precision
    kernels: Count
    activation_bytes: Count
    weight_bytes: Count
    layers: tuple[PlanLayer, ...]
    blocks: tuple[PlanBlock, ...]
    totals: Totals | None = None
    shapes: Mapping[str, Dims] | None = None


class CheckInput(Struct, frozen=True, kw_only=True):
    """One array that a step's result was compared on."""

    name: str
    dims: Dims
    kind: str


class CheckFailure(Struct, frozen=True, kw_only=True):
    """One output that a step got wrong; `error` and `limit` are null where they are no finite number."""

    step: str
    node: str | None
    output: str
    error: float | None
    limit: float | None
    measure: str | None = None
    preset: str | None = None
    tensor: str | None = None  # what `node` writes


class Verified(Struct, frozen=True, kw_only=True):
    """Whether what was written computes what was given."""

    passed: bool
    inputs: tuple[CheckInput, ...]
    failures: tuple[CheckFailure, ...]
    skipped: bool = False
    taken_back: tuple[CheckFailure, ...] = ()


class WaterfallStep(Struct, frozen=True, kw_only=True):
    """The planned cost after a rewrite; the first of a list is the graph as given."""

    rewrite: str
    block: str | None
    kernels: Count
    activation_bytes: Count


class FrozenRatio(Struct, frozen=True, kw_only=True):
    """The static width that a block of learned width was frozen to; `ratio` is channels over hidden."""

    module: str
    channels: Count
    hidden: Count
    available: Count
    ratio: float


class KeptNode(Struct, frozen=True, kw_only=True):
    """A node left in a higher precision, and why."""

    node: str
    reason: str


class Worth(Struct, frozen=True, kw_only=True):
    """INT8 against FP16 on the same target per image: planned, or timed where `timed_on` names the GPU."""

    fp16_bytes: Count
    int8_bytes: Count
    fp16_kernels: Count
    int8_kernels: Count
    recommended: Precision
    reason: str
    fp16_ms: float | None = None
    int8_ms: float | None = None
    device: str | None = None
    timed_on: str | None = None


class NodeShare(Struct, frozen=True, kw_only=True):
    """What one node of a cluster did for a command."""

    name: str
    jobs: Count
    seconds: Amount


@functools.cache
def tool_version() -> str:
    """Return this package's version, "0+uninstalled" where it runs from a source tree."""
    return str(se_deploy.__version__)


def relative(path: Path, folder: Path) -> str:
    """Return `path` as seen from the folder of the output, with forward slashes."""
    return Path(os.path.relpath(path, folder)).as_posix()


def finite(value: float | None) -> float | None:
    """Return a number that JSON can hold; None stands for NaN and infinity."""
    return value if value is not None and math.isfinite(value) else None
