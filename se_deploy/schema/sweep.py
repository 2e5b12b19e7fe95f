"""`sweep.toml` as it is written, and what a sweep of its matrix prints and leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from se_deploy.schema.common import Amount, Count, Fraction, Precision, Result
from se_deploy.schema.config import NetworkKeys, Positive, Text, Texts

Batch = Positive | Literal["dynamic"]
CellState = Literal["done", "cached", "failed"]
Seconds = Annotated[float, Meta(gt=0)]
RunPrecision = Literal["fp32", "fp16", "int8"]
Method = Literal["minmax", "percentile", "entropy", "mse"]


class SweepNetwork(NetworkKeys, frozen=True, kw_only=True):
    """One network of a sweep, with data of its own where it needs other than the rest."""

    model: Text
    calib_data: Text | None = None
    data: Text | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class SweepFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of `sweep.toml`: the matrix, and what every cell is run with."""

    models: Texts = ()
    network: tuple[SweepNetwork, ...] = ()
    precisions: RunPrecision | Annotated[tuple[RunPrecision, ...], Meta(min_length=1)] = "int8"
    targets: Texts = ()  # (): the compiler's own choice
    batches: Batch | Annotated[tuple[Batch, ...], Meta(min_length=1)] = "dynamic"
    calib_data: Text | None = None
    data: Text | None = None
    calib_samples: Positive | None = None
    calib_method: Method | None = None
    allow_random_calibration: bool = False
    runtime: Text = "auto"
    rewrites: Annotated[tuple[Text, ...], Meta(min_length=1)] | bool = True
    search_plans: Count | None = None  # None, here and below: as `run` does
    warmup_ms: Amount | None = None
    duration_s: Amount | None = None
    iterations: Positive | None = None
    cell_seconds: Seconds | None = None


class SweepStep(Struct, frozen=True, kw_only=True):
    """One step of a cell: which node ran it, and how long it took there."""

    name: str
    node: str
    seconds: Amount
    attempts: Count
    shared: bool = False  # another cell needs the same step, and it was done once for all of them


class SweepArtifact(Struct, frozen=True, kw_only=True):
    """One engine of a cell; the time is the measured median per image, else the plan's roofline."""

    path: str
    precision: Precision
    passed: bool | None = None
    accuracy: Fraction | None = None
    top1_agreement: Fraction | None = None
    sqnr_db: float | None = None
    kernels: Count | None = None
    activation_bytes: Count | None = None
    size_bytes: Count | None = None
    ms: Amount | None = None
    ms_from: Literal["measured", "planned"] | None = None
    kept: bool = False  # another cell, maybe of a sweep before, had built the same engine, which was taken


class SweepCell(Struct, frozen=True, kw_only=True):
    """One cell: `run` of one network, precision, target and batch, and what came of it."""

    model: str
    precision: RunPrecision
    target: str | None
    batch: Batch
    state: CellState
    folder: str
    reason: str | None
    key: str  # SHA-256 of everything that went in
    kind: str | None = None  # of the error, where it failed
    hint: str | None = None
    report: str | None = None
    recommendation: str | None = None
    recommended: str | None = None  # the path of the engine to deploy
    artifacts: tuple[SweepArtifact, ...] = ()
    verdicts: Mapping[str, bool | None] = field(default_factory=dict)
    failures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by verdict, in words
    not_finite: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    steps: tuple[SweepStep, ...] = ()
    files: tuple[str, ...] = ()  # in its folder, besides cell.json
    sha256: Mapping[str, str] = field(default_factory=dict)  # of each of them

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of those who worked on it, each once."""
        return tuple(dict.fromkeys(step.node for step in self.steps))

    @property
    def seconds(self) -> float:
        """What its own steps took."""
        return sum(step.seconds for step in self.steps if not step.shared)


class SweepChoice(Struct, frozen=True, kw_only=True):
    """What to deploy on one target, and why."""

    target: str | None
    folder: str | None  # of the cell; null where no artifact passes its verdicts
    artifact: str | None
    reason: str


class SweepNode(Struct, frozen=True, kw_only=True):
    """A machine that took part: what it has, as its worker says."""

    name: str
    tags: tuple[str, ...] = ()


class Sweep(Result, frozen=True, kw_only=True, tag="se-deploy/sweep/1"):
    """Every cell of the matrix, in the order written."""

    cells: tuple[SweepCell, ...]
    report: str
    csv: str
    on: str
    done: Count
    cached: Count
    failed: Count
    seconds: Amount
    recommended: tuple[SweepChoice, ...] = ()
    nodes: tuple[SweepNode, ...] = ()
    command: str | None = None
    date: str | None = None
