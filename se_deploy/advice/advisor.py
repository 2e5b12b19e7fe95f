"""Advice on each block's width from one pass over the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import se_blocks
from se_deploy.advice import widths
from se_deploy.advice.excitation import Excitation, ExcitationSite, locate
from se_deploy.calibration import observe
from se_deploy.errors import BadData, counted
from se_deploy.passes import canonical
from se_deploy.protocols import silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from se_deploy.advice.widths import Function, Width
    from se_deploy.data import Samples
    from se_deploy.protocols import Array, FloatArray, Progress, Runtime

CLOSED = 0.05  # a gate below this share of its most is about 0, one above the rest of it about its most
CONSTANT = 0.01  # a gate that moves by less than this share of its most is constant
TOLERANCE = 0.02  # of a gate: the largest mean change that a suggested width may make, in shares of its most
_FEWEST = 2  # samples: one to fit on, one to measure on


@dataclass(frozen=True, slots=True)
class Advice:
    """What the data says of one block. Unit and channel numbers count from 0.

    Where the hidden units cannot be read (AdviceResult.skipped says why) the gates alone are observed:
    `hidden` and what stands below it keep their defaults.
    """

    output: str  # the block's identity, as in the census
    channels: int
    gates_shut: int  # channels whose gate was about 0 on every sample
    gates_open: int  # about its most
    gates_constant: int  # moved by next to nothing
    gate_mean: float
    gate_std: float  # over samples and channels
    gate_std_by_sample: float  # of a channel's gate from sample to sample, root mean square over channels
    samples: int
    hidden: int | None = None
    effective_rank: float | None = None  # of the values before the gates (Roy and Vetterli 2007); <= hidden
    dead: tuple[int, ...] = ()  # hidden units that were 0 on every sample
    constant: tuple[int, ...] = ()  # units that were another constant: a bias does the same
    removable: tuple[int, ...] = ()  # units that the weights alone prove idle, for every input
    widths: tuple[Width, ...] = ()  # widest first, the exact one; () where the gate's function is not known
    suggested: int | None = None  # the smallest of `widths` within the tolerance; None where that is none

    @property
    def exact(self) -> int | None:
        """Hidden units that are left when those go that do nothing on this data."""
        if self.hidden is None:
            return None
        return max(1, self.hidden - len({*self.dead, *self.constant, *self.removable}))


@dataclass(frozen=True, slots=True)
class SkippedBlock:
    """A block without advice on its width, and why in a user's words."""

    output: str
    reason: str


@dataclass(frozen=True, slots=True)
class AdviceResult:
    """What the data says of every block of a graph, in graph order."""

    blocks: tuple[Advice, ...]
    skipped: tuple[SkippedBlock, ...]  # those of `blocks` whose hidden units could not be read
    samples: int
    tolerance: float
    warnings: tuple[str, ...] = ()


def advise(
    model: ir.Model,
    samples: Samples,
    runtime: Runtime,
    *,
    tolerance: float = TOLERANCE,
    progress: Progress = silent,
) -> AdviceResult:
    """Return advice on every SE block of an FP32 graph, from one pass over at least two `samples`.

    `tolerance` is on the mean change of a gate, in shares of its most. The hidden units of every sample are
    kept, 4 bytes each; the gates are summed up as they come.
    Raises: BadData where the samples are too few, do not fit the graph or a tensor is not finite.
    """
    if samples.count < _FEWEST:
        raise BadData(
            f"advice needs {_FEWEST} samples or more, there is {samples.count}: half of them are held back",
            hint="give more data",
        )
    canonical_form = canonical.canonicalize(model).model
    sites = tuple(locate(canonical_form, block) for block in se_blocks.detect(canonical_form).se)
    units: dict[str, list[Array]] = {
        site.excitation.hidden: [] for site in sites if isinstance(site.excitation, Excitation)
    }
    gates = {site.block.gate_output: _Gates() for site in sites}
    seen = 0
    if sites:
        for arrays in observe(
            canonical_form, [*units, *gates], samples, runtime, progress=progress, step="observe"
        ):
            for name, kept in units.items():
                kept.append(_rows(arrays[name]).astype(np.float32))
            for name, sums in gates.items():
                sums.add(_rows(arrays[name]))
            seen += len(next(iter(arrays.values())))
    blocks = []
    for done, site in enumerate(sites):
        progress("advise", done, len(sites))
        blocks.append(_advice(site, units, gates[site.block.gate_output], tolerance))
    progress("advise", len(sites), len(sites))
    return AdviceResult(
        blocks=tuple(blocks),
        skipped=tuple(
            SkippedBlock(site.block.output, site.excitation)
            for site in sites
            if isinstance(site.excitation, str)
        ),
        samples=seen,
        tolerance=tolerance,
        warnings=_warnings(blocks, seen),
    )


class _Gates:
    """Smallest, largest, sum and sum of squares of each channel's gate, (C,) each."""

    def __init__(self) -> None:
        self.count = 0
        self.low: FloatArray = np.array(np.inf)
        self.high: FloatArray = np.array(-np.inf)
        self.total: FloatArray = np.array(0.0)
        self.squares: FloatArray = np.array(0.0)

    def add(self, gates: Array) -> None:
        """Add (N, C) gates."""
        values = gates.astype(np.float64)
        self.count += len(values)
        self.low = np.minimum(self.low, values.min(axis=0))
        self.high = np.maximum(self.high, values.max(axis=0))
        self.total = self.total + values.sum(axis=0)
        self.squares = self.squares + (values**2).sum(axis=0)


def _advice(
    site: ExcitationSite, units: Mapping[str, Sequence[Array]], gates: _Gates, tolerance: float
) -> Advice:
    means = gates.total / gates.count
    variances = np.maximum(gates.squares / gates.count - means**2, 0)
    advice = Advice(
        output=site.block.output,
        channels=site.block.channels,
        gates_shut=int((gates.high < CLOSED * site.top).sum()),
        gates_open=int((gates.low > (1 - CLOSED) * site.top).sum()),
        gates_constant=int((gates.high - gates.low < CONSTANT * site.top).sum()),
        gate_mean=float(means.mean()),
        gate_std=float(np.sqrt(variances.mean() + means.var())),
        gate_std_by_sample=float(np.sqrt(variances.mean())),
        samples=gates.count,
    )
    if isinstance(site.excitation, str):
        return advice
    hidden = np.concatenate(units[site.excitation.hidden]).astype(np.float64)
    return _with_width(advice, site.excitation, site.function, hidden, tolerance * site.top)


def _with_width(
    advice: Advice, excitation: Excitation, function: Function | None, hidden: FloatArray, limit: float
) -> Advice:
    """Return the advice with what the hidden units (n, R) say."""
    count = hidden.shape[1]
    dead, constant = widths.constant_units(hidden)
    live = sorted(set(range(count)) - {*dead, *constant, *excitation.removable}) or [0]
    tried: tuple[Width, ...] = ()
    if function is not None:
        tried = widths.search(hidden, excitation.layer, function, live=live, limit=limit)
    return replace(
        advice,
        hidden=count,
        effective_rank=widths.excitation_rank(hidden, excitation.layer),
        dead=dead,
        constant=constant,
        removable=excitation.removable,
        widths=tried,
        suggested=min((w.hidden for w in tried if w.mean_gate_error <= limit), default=None),
    )


def _rows(array: Array) -> Array:
    """Return (N, C, 1, 1) as (N, C)."""
    return array.reshape(len(array), -1)


def _warnings(blocks: Sequence[Advice], seen: int) -> tuple[str, ...]:
    widest = max((block.hidden for block in blocks if block.hidden and block.widths), default=0)
    fitted = (seen + 1) // 2
    if not widest or fitted > widest:
        return ()
    few = f"{counted(fitted, 'sample')}, few for {counted(widest, 'hidden unit')}"
    note = f"narrower blocks were fitted on {few}: with more data their errors would be smaller"
    return (note,)
