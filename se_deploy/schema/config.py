"""The tables of `se-deploy.toml`, or of `[tool.se-deploy]` in `pyproject.toml`, as they are written.

A configuration that is read wrongly passes silently, so a key that nobody knows is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from se_deploy.schema.common import Amount, Count, OutputKind, Precision
from se_deploy.schema.input_spec import Interpolation, Resize

Positive = Annotated[int, Meta(ge=1)]
Text = Annotated[str, Meta(min_length=1)]
Texts = Text | Annotated[tuple[Text, ...], Meta(min_length=1)]
Size = (
    Annotated[str, Meta(pattern="^[1-9][0-9]*(x[1-9][0-9]*)*$")]
    | Annotated[tuple[Positive, ...], Meta(min_length=1)]
)
"""Sizes as "3x224x224", or as a list."""


class NetworkKeys(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a network specification becomes a network."""

    checkpoint: Text | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    input_size: Size | None = None
    seed: Count = 0
    threads: Count = 0


class ParityTable(NetworkKeys, frozen=True, kw_only=True):
    """Candidates that have to give the reference's outputs on `data`."""

    reference: Text
    candidates: Texts
    data: Text
    preset: Precision | None = None
    atol: Amount | Mapping[str, Amount] | None = None
    rtol: Amount | Mapping[str, Amount] | None = None
    min_cosine: Amount | None = None
    min_top1: Amount | None = None
    min_iou: Amount | None = None
    outputs: Mapping[str, OutputKind] = field(default_factory=dict)  # what one is, where the guess is wrong
    samples: Positive | None = None
    skip_unreadable: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: Resize | None = None
    interpolation: Interpolation | None = None
    crop: Amount | None = None


class FusionTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files whose SE blocks have to fuse."""

    files: Texts
    runtime: Text | None = None
    target: Texts = ()
    allow_split: Count = 0


class ChainTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Q/DQ files whose INT8 layers have to follow on each other in INT8."""

    files: Texts
    allow_breaks: Count = 0


class PrecisionTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The precision that each file has to run in."""

    files: Annotated[Mapping[str, Precision], Meta(min_length=1)]


class LatencyTable(NetworkKeys, frozen=True, kw_only=True):
    """Files that have to be fast, by themselves or against a reference."""

    files: Texts
    reference: Text | None = None
    max_p50_ms: Amount | None = None
    min_speedup: Amount | None = None
    batch: Positive = 1
    warmup_ms: Amount | None = None  # None, here and below: as `profile` does
    duration_s: Amount | None = None
    iterations: Positive | None = None


class SweepTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sweep that may not be worse than an earlier one; both are folders that `sweep` filled."""

    folder: Text
    against: Text
    max_accuracy_drop: Amount = 0.0  # of top-1, as a share
    max_slowdown: Amount = 0.0  # of the time per image, as a share


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of `se-deploy.toml`: a table for each gate, or several as [[parity]]."""

    parity: ParityTable | tuple[ParityTable, ...] = ()
    fusion: FusionTable | tuple[FusionTable, ...] = ()
    precision: PrecisionTable | tuple[PrecisionTable, ...] = ()
    latency: LatencyTable | tuple[LatencyTable, ...] = ()
    sweep: SweepTable | tuple[SweepTable, ...] = ()
