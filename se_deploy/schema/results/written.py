"""What `export`, `quantize`, `build-engine` and `bundle` wrote, and what they know of it."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from se_deploy.schema.common import (
    Amount,
    Block,
    Count,
    FrozenRatio,
    KeptNode,
    NodeShare,
    Plan,
    Precision,
    Rejected,
    Result,
    Verified,
    WaterfallStep,
    Worth,
)
from se_deploy.schema.results.inspected import Chain


class Export(Result, frozen=True, kw_only=True, tag="se-deploy/export/1"):
    """What `export` wrote: paths are relative to its folder."""

    blocks: tuple[Block, ...]
    rejected: tuple[Rejected, ...]
    plans: tuple[Plan, ...]
    onnx: str
    nodes_before: Count
    nodes_after: Count
    rewrites: tuple[tuple[str, Count], ...]
    max_abs_error: float | None
    opset: Count
    exporter: str | None = None
    precision: Precision | None = None
    runtime: str | None = None
    frozen: tuple[FrozenRatio, ...] = ()
    waterfall: tuple[WaterfallStep, ...] = ()
    verified: Verified | None = None
    refused: tuple[tuple[str, str, str], ...] = ()  # rewrite, block, why it was not possible
    kept_fp32: tuple[KeptNode, ...] = ()
    unchecked: tuple[str, ...] = ()  # what nobody knows of the ranges that FP16 must hold
    rounding: str | None = None  # where the numbers that were verified are rounded to FP16
    on: str = "local"  # who worked on what can be done side by side, as --on names it
    nodes: tuple[NodeShare, ...] = ()  # of a cluster, those that did some of it


class CurvePoint(Struct, frozen=True, kw_only=True):
    """Accuracy bought with multiply-accumulates left in FP16; `added_ms` per image by a roofline."""

    macs_fp16_fraction: float
    sqnr_db: float | None
    added_ms: float | None = None
    accuracy: float | None = None
    kept: Count | None = None


class Range(Struct, frozen=True, kw_only=True):
    """What a tensor's INT8 covers; with a threshold, what was seen of it and where it is clipped."""

    tensor: str
    low: float
    high: float
    threshold: float | None = None
    reason: str | None = None  # why the scale does not come from the data


class ReconstructedBlock(Struct, frozen=True, kw_only=True):
    """One block: the SQNR of its output on samples that it was not trained on, in dB."""

    tensor: str
    layers: tuple[str, ...]
    kept: bool
    before_db: float | None = None
    after_db: float | None = None
    reason: str | None = None  # why it was not tried


class Reconstruction(Struct, frozen=True, kw_only=True):
    """What --reconstruct did: blocks by cross-validation, the worst output on the samples held back."""

    seconds: Amount
    kept: bool
    blocks: tuple[ReconstructedBlock, ...]
    before_db: float | None
    after_db: float | None


class Quantize(Result, frozen=True, kw_only=True, tag="se-deploy/quantize/1"):
    """What `quantize` wrote; SQNR per output on samples that were not calibrated on."""

    onnx: str
    policy: str
    method: str
    samples: Count
    quantized: tuple[str, ...]
    kept: tuple[KeptNode, ...]
    sqnr_db: Mapping[str, float | None]
    macs_int8_fraction: float
    worth: Worth | None = None
    worth_unknown: str | None = None  # why it is not known whether INT8 pays
    curve: tuple[CurvePoint, ...] = ()
    ranges: tuple[Range, ...] = ()
    kept_fp32: tuple[KeptNode, ...] = ()
    unchecked: tuple[str, ...] = ()  # what nobody knows of the ranges that FP16 must hold
    rounding: str | None = None  # where the SQNR's numbers are rounded to FP16
    chain: Chain | None = None
    reconstruction: Reconstruction | None = None
    verified: Verified | None = None
    on: str = "local"  # who worked on what can be done side by side, as --on names it
    nodes: tuple[NodeShare, ...] = ()  # of a cluster, those that did some of it


class BuildEngine(Result, frozen=True, kw_only=True, tag="se-deploy/build-engine/1"):
    """What `build-engine` built: paths are relative to the engine's folder, rewrites are [name, block]."""

    engine: str
    manifest: str
    plan: Plan
    requested_precision: Precision
    found_precision: Precision
    seconds: Amount
    onnx: str | None = None
    skipped_tactics: Count | None = None
    rewrites: tuple[tuple[str, str], ...] = ()
    waterfall: tuple[WaterfallStep, ...] = ()
    worth: Worth | None = None
    worth_unknown: str | None = None  # why it is not known whether INT8 pays
    verified: Verified | None = None
    refused: tuple[tuple[str, str, str], ...] = ()  # rewrite, block, why it was not possible
    kept_fp32: tuple[KeptNode, ...] = ()
    unchecked: tuple[str, ...] = ()  # what nobody knows of the ranges that FP16 must hold
    rounding: str | None = None  # where the numbers that were verified are rounded to FP16
    remote: str | None = None  # the host that it ran on, as --remote names it; null: this machine
    on: str = "local"  # who worked on what can be done side by side, as --on names it
    nodes: tuple[NodeShare, ...] = ()  # of a cluster, those that did some of it
    kept: bool = False  # another cell, maybe of a sweep before, had built the same engine, which was taken


class Bundle(Result, frozen=True, kw_only=True, tag="se-deploy/bundle/1"):
    """The folder that was filled; `model` is Triton's name for the network."""

    folder: str
    files: tuple[str, ...]
    triton: bool
    model: str | None
