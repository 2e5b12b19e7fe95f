"""What `inspect` reads from a file: blocks, the advice of data, the INT8 chain."""

from __future__ import annotations

from msgspec import Struct

from se_deploy.schema.common import Block, Count, Fraction, Plan, Rejected, Result, Totals
from se_deploy.schema.files import Manifest


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
    int8_macs_fraction: Fraction | None = None  # of all layers with constant weights; null with free sizes
    int8_bytes_fraction: Fraction | None = None  # of the activations that kernels read and write; likewise


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
