"""The object that each command prints with --json, and `report.json` of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from se_deploy.schema.common import (
    Amount,
    Block,
    Count,
    Dims,
    Fraction,
    FrozenRatio,
    GateName,
    KeptNode,
    OutputKind,
    Plan,
    Precision,
    Rejected,
    Result,
    Totals,
    Verified,
    WaterfallStep,
    Worth,
)
from se_deploy.schema.files import Manifest
from se_deploy.schema.input_spec import InputSpec


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


class DryRun(Result, frozen=True, kw_only=True, tag="se-deploy/dry-run/1"):
    """What a command would do with --dry-run, which does nothing: its steps in order, and its files."""

    command: str
    steps: tuple[str, ...]
    writes: tuple[str, ...]


class Width(Struct, frozen=True, kw_only=True):
    """A block with fewer hidden units, and what that does to its gates on data not fitted to."""

    hidden: Count
    mean_gate_error: float
    max_gate_error: float
    ratio: float | None = None
    rms_gate_error: float | None = None


class BlockAdvice(Struct, frozen=True, kw_only=True):
    """What data says of one block; units and channels count from 0."""

    output: str
    channels: Count | None = None
    gates_shut: Count | None = None
    gates_open: Count | None = None
    gates_constant: Count | None = None
    gate_mean: float | None = None
    gate_std: float | None = None
    gate_std_by_sample: float | None = None
    samples: Count | None = None
    hidden: Count | None = None
    effective_rank: float | None = None
    dead: tuple[int, ...] = ()
    constant: tuple[int, ...] = ()
    removable: tuple[int, ...] = ()
    widths: tuple[Width, ...] = ()
    suggested: Count | None = None
    exact: Count | None = None


class Advice(Struct, frozen=True, kw_only=True):
    """What data says of every block; `tolerance` is on the mean change of a gate."""

    blocks: tuple[BlockAdvice, ...]
    skipped: tuple[Rejected, ...] = ()
    samples: Count | None = None
    tolerance: float | None = None


class SEParams(Struct, frozen=True, kw_only=True):
    """The blocks' parameters: counted with biases, and by the literature's formula without."""

    counted: Count
    formula: Count


class ChainBreak(Struct, frozen=True, kw_only=True):
    """Where a chain of INT8 layers leaves INT8, by which published rule, and how sure that is."""

    node: str
    cause: str
    source: str | None
    rule: str | None = None
    says: str | None = None  # the rule in words
    evidence: str | None = None  # "documented, not measured", or what was measured
    layers: tuple[str, ...] = ()  # the INT8 layers that read or write floats for it


class ChainEnd(Struct, frozen=True, kw_only=True):
    """Where a chain ends by the network's own making, or at a layer left in float: no break."""

    node: str
    cause: str
    layers: tuple[str, ...] = ()


class Chain(Struct, frozen=True, kw_only=True):
    """How far INT8 layers of a Q/DQ file follow on each other in INT8, by TensorRT's published rules."""

    int8_layers: Count
    unbroken: Count
    breaks: tuple[ChainBreak, ...]
    ends: tuple[ChainEnd, ...] = ()
    float_layers: tuple[str, ...] = ()
    unbroken_fraction: Fraction | None = None  # of the INT8 layers
    int8_macs_fraction: Fraction | None = None  # of all layers with constant weights
    int8_bytes_fraction: Fraction | None = None  # of the activations that kernels read and write


class Inspect(Result, frozen=True, kw_only=True, tag="se-deploy/inspect/1"):
    """What is in an ONNX file, or by its manifest in an engine."""

    blocks: tuple[Block, ...]
    rejected: tuple[Rejected, ...]
    plans: tuple[Plan, ...]
    file: str | None = None
    nodes: Count | None = None
    opset: Count | None = None
    se_params: SEParams | None = None
    totals: Totals | None = None
    advice: Advice | None = None
    chain: Chain | None = None
    manifest: Manifest | None = None


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


class OutputParity(Struct, frozen=True, kw_only=True):
    """One output against the reference; null where a measure is no finite number or has no meaning.

    `agreement`: equal labels or pixels, or boxes with a partner; `iou`: the mean over the classes of a mask,
    or over the boxes of both sets, 0 for one without a partner.
    """

    name: str
    max_abs: float | None
    max_rel: float | None
    cosine: float | None
    sqnr_db: float | None
    top1_agreement: float | None
    passed: bool
    kind: OutputKind | None = None
    top5_agreement: float | None = None
    iou: float | None = None
    agreement: float | None = None
    worst_cosine: float | None = None  # of an embedding: the sample that turned most


class Divergence(Struct, frozen=True, kw_only=True):
    """The first tensor that differs."""

    tensor: str
    node: str | None = None
    op_type: str | None = None
    relative_rms: float | None = None


class Disagreement(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sample that a candidate names another class of; `picture`: what was fed, a PNG as data URI."""

    sample: Count
    reference: int
    candidate: int
    margin: float | None = None
    picture: str | None = None


class Candidate(Struct, frozen=True, kw_only=True):
    """One artifact against the reference; `checked_as` says what stood in for it, `rounding` how in FP16."""

    path: str
    passed: bool
    outputs: tuple[OutputParity, ...]
    first_divergence: Divergence | None
    preset: str | None = None
    samples: Count | None = None
    accuracy: float | None = None
    checked_as: str | None = None
    failures: tuple[str, ...] = ()
    evaluated: str | None = None  # "engine", "plan-rounded", or the name of the backend that ran it
    rounding: str | None = None
    shapes: Mapping[str, Dims] | None = None
    disagreements: tuple[Disagreement, ...] = ()


class Parity(Result, frozen=True, kw_only=True, tag="se-deploy/parity/1"):
    """Every candidate against one reference on the same data."""

    preset: str
    candidates: tuple[Candidate, ...]
    passed: bool
    reference: str | None = None
    reference_accuracy: float | None = None
    remote: str | None = None  # the host that it ran on, as --remote names it; null: this machine


class LayerTime(Struct, frozen=True, kw_only=True):
    """The mean device time of one layer of an engine."""

    name: str
    mean_ms: Amount
    onnx_nodes: tuple[str, ...] = ()
    block: str | None = None  # the SE block that it computes, by its output


class Timing(Struct, frozen=True, kw_only=True):
    """The latency of one artifact in ms per call; power and energy are null where nothing can read them."""

    path: str
    runtime: str
    device: str
    batch: Count
    p50_ms: Amount
    p90_ms: Amount
    p99_ms: Amount
    mean_ms: Amount
    std_ms: Amount
    throughput_per_s: Amount
    samples: Count
    stable: bool
    power_w: float | None
    energy_mj: float | None
    speedup_vs_reference: float | None
    enqueue_ms: float | None = None
    h2d_ms: float | None = None
    d2h_ms: float | None = None
    end_to_end_ms: float | None = None
    layers: tuple[LayerTime, ...] = ()
    shapes: Mapping[str, Dims] | None = None
    se_share: float | None = None  # of the layers' time: what the SE blocks take
    cuda_graph: bool | None = None  # whether the timed calls replayed a CUDA graph
    streams: Count | None = None
    streams_throughput_per_s: float | None = None  # of so many streams together


class Profile(Result, frozen=True, kw_only=True, tag="se-deploy/profile/1"):
    """Latencies, the reference first where there is one."""

    artifacts: tuple[Timing, ...]
    threads: Count | None = None
    remote: str | None = None  # the host that it ran on, as --remote names it; null: this machine


class Network(Struct, frozen=True, kw_only=True):
    """The network of a run."""

    spec: str | None = None
    weights: str | None = None
    params: Count | None = None
    macs: Count | None = None
    input: InputSpec | None = None


class Machine(Struct, frozen=True, kw_only=True):
    """What a run ran on."""

    platform: str | None = None
    cpu: str | None = None
    cores: Count | None = None
    python: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)


class Verdicts(Struct, frozen=True, kw_only=True):
    """Pass or fail of each gate; null where it was not judged."""

    parity: bool | None = None
    fusion: bool | None = None
    precision: bool | None = None
    latency: bool | None = None


class Run(Result, frozen=True, kw_only=True, tag="se-deploy/run/1"):
    """Everything that a run measured: `report.json`; what was not asked for is null."""

    report: str
    artifacts: Mapping[str, str]
    command: str | None = None
    date: str | None = None
    network: Network | None = None
    machine: Machine | None = None
    sizes: Mapping[str, Count] = field(default_factory=dict)
    export: Export | None = None
    inspect: Inspect | None = None
    quantize: Quantize | None = None
    build_engines: Mapping[str, BuildEngine] = field(name="build-engines", default_factory=dict)
    build_engine: BuildEngine | None = field(name="build-engine", default=None)
    parity: Parity | None = None
    profile: Profile | None = None
    verdicts: Verdicts | None = None
    recommendation: str | None = None
    folder: str | UnsetType = UNSET  # where `report` found it; not part of the file


class Demo(Run, frozen=True, kw_only=True, tag="se-deploy/demo/1"):
    """A run of the shipped network on the shipped digits."""


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that `doctor` looked at; `fix` is a command, where something can be installed."""

    name: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    fix: str | None = None


class Doctor(Result, frozen=True, kw_only=True, tag="se-deploy/doctor/1"):
    """What this machine can build and run."""

    checks: tuple[Finding, ...]
    can_build: tuple[str, ...]
    can_run: tuple[str, ...]


class Gate(Struct, frozen=True, kw_only=True):
    """One gate's verdict on one file: why it failed, or what was measured."""

    gate: GateName
    name: str
    passed: bool | None
    details: tuple[str, ...]


class Check(Result, frozen=True, kw_only=True, tag="se-deploy/check/1"):
    """Every gate of a configuration, and the measurements behind them."""

    config: str
    passed: bool
    gates: tuple[Gate, ...]
    parity: tuple[Parity, ...]
    profile: tuple[Profile, ...]


class Report(Result, frozen=True, kw_only=True, tag="se-deploy/report/1"):
    """Runs side by side, each with the folder that it was found in."""

    runs: tuple[Run | Demo, ...]


class ShippedNetwork(Struct, frozen=True, kw_only=True):
    """A network that ships; multiply-accumulates for one image of `input_size` (C, H, W)."""

    name: str
    params: Count
    macs: Count
    blocks: Count
    input_size: Dims
    reference: str


class Networks(Result, frozen=True, kw_only=True, tag="se-deploy/networks/1"):
    """The networks that ship."""

    networks: tuple[ShippedNetwork, ...]


class Guess(Struct, frozen=True, kw_only=True):
    """One class and its probability."""

    index: Count
    label: str | None
    probability: Fraction


class Box(Struct, frozen=True, kw_only=True):
    """One box by its corners x1, y1, x2, y2 in the network's own units; null: the network does not say."""

    corners: tuple[float, ...]
    score: float | None
    index: int | None
    label: str | None


class Share(Struct, frozen=True, kw_only=True):
    """One class of a mask and its share of the pixels."""

    index: Count
    label: str | None
    share: Fraction


class Prediction(Struct, frozen=True, kw_only=True):
    """What is said of one image: its most probable classes, best first; or a mask; or boxes, best first."""

    image: str
    top: tuple[Guess, ...] = ()
    mask: str | None = None  # the PNG that was written, its pixels the class indices
    classes: tuple[Share, ...] = ()  # of the mask, the largest first
    boxes: tuple[Box, ...] = ()


class Predict(Result, frozen=True, kw_only=True, tag="se-deploy/predict/1"):
    """What an artifact says of each image."""

    artifact: str
    runtime: str
    device: str
    predictions: tuple[Prediction, ...]
    remote: str | None = None  # the host that it ran on, as --remote names it; null: this machine


class Bundle(Result, frozen=True, kw_only=True, tag="se-deploy/bundle/1"):
    """The folder that was filled; `model` is Triton's name for the network."""

    folder: str
    files: tuple[str, ...]
    triton: bool
    model: str | None


class ErrorFields(Struct, frozen=True, kw_only=True):
    """What went wrong, and what to do about it."""

    kind: str
    message: str
    hint: str


class Error(Struct, frozen=True, kw_only=True, tag_field="schema", tag="se-deploy/error/1"):
    """What any command prints with --json where it fails."""

    error: ErrorFields
