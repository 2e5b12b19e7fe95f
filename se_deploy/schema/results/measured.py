"""What `parity`, `profile` and `predict` measured."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from se_deploy.schema.common import Amount, Count, Dims, Fraction, OutputKind, Result


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
