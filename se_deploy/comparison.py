"""Outputs against outputs: measured in one streaming pass, judged by a tolerance of its own type.

`Parity` holds numbers, `Tolerance` says pass or fail; a preset per precision saves everyone the question
why a fine FP16 engine fails at 1e-5.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from se_deploy import batching
from se_deploy.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from se_deploy.protocols import Array, Arrays, Runtime, Session

IDENTICAL_DB = 200.0
"""Reported in place of an infinite signal-to-quantization-noise ratio."""


@dataclass(frozen=True, slots=True)
class OutputParity:
    """How far one output of a candidate is from the reference's, over all samples."""

    name: str
    max_abs: float
    max_rel: float  # max_abs over the largest magnitude of the reference
    cosine: float
    sqnr_db: float  # reference power over error power
    top1_agreement: float | None  # share of samples with the same largest class; None unless (N, classes)
    discrete: bool = False  # integers or booleans: `top1_agreement` is then the share of equal values


@dataclass(frozen=True, slots=True)
class Parity:
    """A candidate measured against the reference."""

    outputs: tuple[OutputParity, ...]
    samples: int
    reference_accuracy: float | None = None  # top-1 against labels, of the first output that names classes
    candidate_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Miss:
    """One limit that an output does not keep."""

    measure: str  # "largest error", "1 - cosine", "share of other answers"
    value: float
    limit: float


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What passes: |error| <= atol + rtol * max|reference|, and the floors on cosine and agreement."""

    preset: str
    atol: float
    rtol: float
    min_cosine: float
    min_top1: float
    divergence: float  # relative RMS error of an inner tensor from which it counts as diverged

    def misses(self, parity: OutputParity) -> tuple[Miss, ...]:
        """Return the limits that are not kept; NaN keeps none, integers are held to agreement alone."""
        found = []
        if not parity.discrete:
            limit = self.atol + self.rtol * parity.max_abs / parity.max_rel if parity.max_rel else self.atol
            if not parity.max_abs <= limit:
                found.append(Miss("largest error", parity.max_abs, limit))
            if not parity.cosine >= self.min_cosine:
                found.append(Miss("1 - cosine", 1 - parity.cosine, 1 - self.min_cosine))
        if parity.top1_agreement is not None and not parity.top1_agreement >= self.min_top1:
            found.append(Miss("share of other answers", 1 - parity.top1_agreement, 1 - self.min_top1))
        return tuple(found)

    def failures(self, parity: OutputParity) -> tuple[str, ...]:
        """Return what does not pass; empty where all does. NaN never passes."""
        return tuple(f"'{parity.name}': {self._words(miss, parity)}" for miss in self.misses(parity))

    def _words(self, miss: Miss, parity: OutputParity) -> str:
        if miss.measure == "largest error":
            return f"largest error {miss.value:.3g} is above {miss.limit:.3g}"
        if miss.measure == "1 - cosine":
            return f"cosine {parity.cosine:.6f} is below {self.min_cosine}"
        what = "agreement" if parity.discrete else "top-1 agreement"
        return f"{what} {parity.top1_agreement:.2%} < {self.min_top1:.2%}"


PRESETS = {
    # The same sums in another order: a few units in the last place of FP32, grown through the layers.
    "fp32": Tolerance("fp32", atol=1e-5, rtol=1e-4, min_cosine=0.99999, min_top1=0.995, divergence=1e-4),
    # FP16 has 11 bits: 5e-4 per operation, some percent of the output's range at the end of a deep network.
    "fp16": Tolerance("fp16", atol=1e-3, rtol=3e-2, min_cosine=0.999, min_top1=0.99, divergence=3e-2),
    # INT8 is judged by direction and by answers: single values may be far off.
    "int8": Tolerance("int8", atol=math.inf, rtol=0.0, min_cosine=0.98, min_top1=0.97, divergence=0.3),
}


def tolerance(
    preset: str,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    min_cosine: float | None = None,
    min_top1: float | None = None,
) -> Tolerance:
    """Return a preset, with any of its limits replaced. Raises: BadInput for an unknown preset."""
    if preset not in PRESETS:
        raise BadInput(f"there is no preset '{preset}'", hint=f"use one of {', '.join(PRESETS)}")
    base = PRESETS[preset]
    return dataclasses.replace(
        base,
        atol=base.atol if atol is None else atol,
        rtol=base.rtol if rtol is None else rtol,
        min_cosine=base.min_cosine if min_cosine is None else min_cosine,
        min_top1=base.min_top1 if min_top1 is None else min_top1,
    )


def compare(
    reference: Session,
    candidate: Session,
    batches: Iterable[Arrays],
    *,
    labels: npt.NDArray[np.int64] | None = None,
) -> Parity:
    """Run both on the same batches and measure every output.

    Inputs and outputs are matched by name, or by position where the names differ.
    Raises: BadInput where the two do not have the same outputs.
    """
    names = paired([o.name for o in reference.outputs], [o.name for o in candidate.outputs], "outputs")
    feeds_as = paired([i.name for i in reference.inputs], [i.name for i in candidate.inputs], "inputs")
    sums = {name: _Sums() for name in names}
    right = np.zeros(2)
    seen, judged = 0, False
    for feeds in batches:
        want = batching.run(reference, feeds)
        got = batching.run(candidate, {feeds_as[name]: value for name, value in feeds.items()})
        count = len(next(iter(feeds.values())))
        for name, other in names.items():
            sums[name].add(want[name], got[other])
        named = next((name for name in names if _names_classes(want[name], count)), None)
        if labels is not None and named is not None:
            truth, judged = labels[seen : seen + count], True
            right += [(_classes(x) == truth).sum() for x in (want[named], got[names[named]])]
        seen += count
    if not seen:
        raise BadInput("there is no sample to compare on", hint="name data with --data")
    return Parity(
        outputs=tuple(total.parity(name) for name, total in sums.items()),
        samples=seen,
        reference_accuracy=float(right[0] / seen) if judged else None,
        candidate_accuracy=float(right[1] / seen) if judged else None,
    )


def _names_classes(answers: Array, samples: int) -> bool:
    """Whether an output is scores (N, classes), or the index of a class for each sample."""
    if answers.ndim == 1:
        return answers.dtype.kind in "iu" and len(answers) == samples
    return answers.ndim == 2 and answers.dtype.kind == "f" and answers.shape[1] > 1  # noqa: PLR2004 - as said


def _classes(answers: Array) -> Array:
    return answers if answers.ndim == 1 else np.asarray(answers.argmax(1))


def measured(name: str, pairs: Iterable[tuple[Array, Array]]) -> OutputParity:
    """Measure one output from (reference, candidate) arrays of equal shapes. Raises: BadInput for others."""
    sums = _Sums()
    for want, got in pairs:
        sums.add(want, got)
    return sums.parity(name)


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first inner tensor, in graph order, that is no longer the reference's."""

    tensor: str
    node: str
    op_type: str
    relative_rms: float


def first_divergence(
    reference: ir.Model,
    candidate: ir.Model,
    feeds: Arrays,
    *,
    runtime: Runtime,
    limit: float,
    evaluated: ir.Model | None = None,
) -> Divergence | None:
    """Compare the inner tensors that two graphs share by name, in the candidate's order.

    `limit` is a relative RMS error. `evaluated` is run in the candidate's place where it has other nodes for
    the same tensors, such as casts that round them; nodes are named as the candidate has them.
    None where all shared tensors stay below the limit.
    """
    runs = candidate if evaluated is None else evaluated
    shared = _float_values(reference) & _float_values(candidate) & _float_values(runs)
    with runtime.open(_exposing(reference, shared)) as a, runtime.open(_exposing(runs, shared)) as b:
        want, got = batching.run(a, feeds), batching.run(b, feeds)
    for node in candidate.graph:
        for value in node.outputs:
            if value.name in shared and value.name in want and value.name in got:
                error = _relative_rms(want[value.name], got[value.name])
                if error is not None and not error <= limit:
                    return Divergence(value.name, node.name or "", node.op_type, error)
    return None


def _relative_rms(want: Array, got: Array) -> float | None:
    """Return the RMS error over the reference's RMS where that is finite; None where shapes differ."""
    if want.shape != got.shape:
        return None
    at = np.isfinite(want)  # what the reference has no number for cannot be got wrong
    if not at.any():
        return 0.0
    x, y = want[at].astype(np.float64), got[at].astype(np.float64)
    power = math.sqrt(float(np.mean(x * x))) or 1.0
    return math.sqrt(float(np.mean((x - y) ** 2))) / power


class _Sums:
    """Running sums of one output over the batches."""

    def __init__(self) -> None:
        self.dot = self.reference = self.candidate = self.error = 0.0
        self.max_abs = self.reach = 0.0
        self.agree = self.rows = 0
        self.discrete = False

    def add(self, want: Array, got: Array) -> None:
        if want.shape != got.shape:
            raise BadInput(
                f"the outputs have shapes {want.shape} and {got.shape}", hint="compare the same network"
            )
        self.discrete = want.dtype.kind != "f"
        if self.discrete:
            self.agree += int((want == got).sum())
            self.rows += want.size
        elif want.ndim == 2 and want.shape[1] > 1:  # noqa: PLR2004 - (N, classes)
            self.agree += int((want.argmax(1) == got.argmax(1)).sum())
            self.rows += len(want)
        x, y = want.astype(np.float64).ravel(), got.astype(np.float64).ravel()
        gap = x - y
        self.dot += float(x @ y)
        self.reference += float(x @ x)
        self.candidate += float(y @ y)
        self.error += float(gap @ gap)
        if gap.size:
            self.max_abs = float(np.fmax(self.max_abs, np.abs(gap).max()))
            self.max_abs = math.nan if np.isnan(gap).any() else self.max_abs
            self.reach = max(self.reach, float(np.abs(x).max()))

    def parity(self, name: str) -> OutputParity:
        norms = math.sqrt(self.reference * self.candidate)
        same = self.error == 0.0
        return OutputParity(
            name=name,
            max_abs=self.max_abs,
            max_rel=self.max_abs / self.reach if self.reach else (0.0 if same else math.inf),
            cosine=self.dot / norms if norms else (1.0 if same else 0.0),
            sqnr_db=IDENTICAL_DB if same else _decibel(self.reference, self.error),
            top1_agreement=self.agree / self.rows if self.rows else None,
            discrete=self.discrete,
        )


def _decibel(signal: float, noise: float) -> float:
    if math.isnan(noise) or math.isinf(noise):
        return -IDENTICAL_DB
    return min(IDENTICAL_DB, 10 * math.log10(signal / noise)) if signal else -IDENTICAL_DB


def paired(ours: list[str], theirs: list[str], what: str) -> Mapping[str, str]:
    """Match names with themselves, by position where the sets differ. Raises: BadInput for other counts."""
    if len(ours) != len(theirs):
        raise BadInput(
            f"the reference has {len(ours)} {what} ({', '.join(ours)}), the candidate {len(theirs)} "
            f"({', '.join(theirs)})",
            hint="compare the same network",
        )
    return {name: name for name in ours} if set(ours) == set(theirs) else dict(zip(ours, theirs, strict=True))


def _float_values(model: ir.Model) -> set[str]:
    floats = {ir.DataType.FLOAT, ir.DataType.FLOAT16}
    return {v.name for n in model.graph for v in n.outputs if v.name and v.dtype in floats}


def _exposing(model: ir.Model, names: set[str]) -> ir.Model:
    copy = model.clone()
    present = {value.name for value in copy.graph.outputs}
    for node in copy.graph:
        for value in node.outputs:
            if value.name in names - present:
                copy.graph.outputs.append(value)
    return copy
