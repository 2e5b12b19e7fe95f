"""How many hidden units an excitation needs: pure linear algebra on their observed values.

The excitation is z = W h + b with h the hidden units behind their activation. A narrower one keeps some of
the units and has W and b fitted again by least squares, on half of the data; the other half says what that
costs. Shapes: h (n, R), W (C, R), b (C,), z (n, C).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from se_deploy.protocols import FloatArray

    Function = Callable[[FloatArray], FloatArray]

_SAME = 1e-6  # a unit that moves by less than this share of the block's largest is constant
_NOTHING = 1e-12  # of a unit's variance: what is left of it that rounding explains


@dataclass(frozen=True, slots=True)
class Width:
    """A block with fewer hidden units, refitted, and what that does to its gates on data not fitted to."""

    hidden: int
    ratio: float  # channels / hidden
    mean_gate_error: float
    rms_gate_error: float
    max_gate_error: float


@dataclass(frozen=True, slots=True)
class Layer:
    """A block's last learned layer."""

    weight: FloatArray  # (C, R)
    bias: FloatArray  # (C,)


def effective_rank(singular_values: FloatArray) -> float:
    """Return exp(entropy) of the singular values' shares; 0 for zeros, else from 1 to their number.

    The effective rank of O. Roy and M. Vetterli, "The effective rank: a measure of effective
    dimensionality", EUSIPCO 2007.
    """
    total = singular_values.sum()
    if total <= 0:
        return 0.0
    shares = singular_values / total
    shares = shares[shares > 0]  # a share may vanish where its value does not
    return float(np.exp(-(shares * np.log(shares)).sum()))


def excitation_rank(hidden: FloatArray, layer: Layer) -> float:
    """Return the effective rank of the values before the gates, (n, C), each channel less its mean.

    It says how many directions the hidden units really give to the gates; at most R.
    """
    triangle = np.linalg.qr(hidden - hidden.mean(axis=0), mode="r")  # leaves the singular values as they are
    return effective_rank(np.linalg.svd(triangle @ layer.weight.T, compute_uv=False))


def constant_units(hidden: FloatArray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the units that never moved, by number: those at 0, and those at another constant."""
    largest = np.abs(hidden).max()
    unmoved = np.ptp(hidden, axis=0) <= _SAME * largest
    zero = unmoved & (np.abs(hidden).max(axis=0) <= _SAME * largest)
    return tuple(np.flatnonzero(zero).tolist()), tuple(np.flatnonzero(unmoved & ~zero).tolist())


def search(
    hidden: FloatArray, layer: Layer, function: Function, *, live: Sequence[int], limit: float
) -> tuple[Width, ...]:
    """Return what blocks of `live` units, a half of them, a quarter, ..., 1 cost; widest first.

    Widths between the last that changes the gates by no more than `limit` in the mean and the next are tried
    too, so that the smallest such width is among them. Units outside `live` go first: they must be constant
    or unread. n must be at least 2.
    """
    fit, test = hidden[::2], hidden[1::2]  # data is often sorted by class: every other sample
    order = _by_gain(fit - fit.mean(axis=0), layer.weight, live)
    truth = function(test @ layer.weight.T + layer.bias)
    tried: dict[int, Width] = {}

    def is_enough(width: int) -> bool:
        error = np.abs(function(_refitted(layer, fit, test, order[:width])) - truth)
        tried[width] = Width(
            hidden=width,
            ratio=len(layer.weight) / width,
            mean_gate_error=float(error.mean()),
            rms_gate_error=float(np.sqrt((error**2).mean())),
            max_gate_error=float(error.max()),
        )
        return tried[width].mean_gate_error <= limit

    enough, few = len(live), 0
    for width in _halvings(len(live)):
        if is_enough(width):
            enough = width
        else:
            few = max(few, width)
    while enough - few > 1:
        middle = (enough + few) // 2
        enough, few = (middle, few) if is_enough(middle) else (enough, middle)
    return tuple(tried[width] for width in sorted(tried, reverse=True))


def _refitted(layer: Layer, fit: FloatArray, test: FloatArray, kept: Sequence[int]) -> FloatArray:
    """Return z on `test` from the kept units, with W and b fitted again on `fit`.

    z is linear in the units, so that its best fit is had by fitting each dropped unit to the kept ones. The
    solution of least norm leaves W as it is where the dropped are constant, however few the samples are.
    """
    others = np.setdiff1d(np.arange(fit.shape[1]), kept)
    means = fit.mean(axis=0)
    guess, *_ = np.linalg.lstsq(fit[:, kept] - means[kept], fit[:, others] - means[others], rcond=None)
    units = np.empty_like(test)
    units[:, kept] = test[:, kept]
    units[:, others] = (test[:, kept] - means[kept]) @ guess + means[others]
    z: FloatArray = units @ layer.weight.T + layer.bias
    return z


def _by_gain(centred: FloatArray, weight: FloatArray, live: Sequence[int]) -> list[int]:
    """Return `live` by how much each unit adds to a least-squares fit of z on those before it (greedily)."""
    units = centred[:, live]
    rest = units.T @ units  # the units' products, those chosen projected out
    # Only lengths of rows matter below: W without its left singular vectors gives them in R columns, not C.
    _, sizes, directions = np.linalg.svd(weight, full_matrices=False)
    towards = (units.T @ centred) @ (sizes[:, None] * directions).T  # their products with what is left of z
    nothing = _NOTHING * np.diag(rest)
    order: list[int] = []
    for _ in live:
        size = np.diag(rest)
        gain = np.divide((towards**2).sum(axis=1), size, out=np.zeros(len(size)), where=size > nothing)
        gain[order] = -1
        best = int(gain.argmax())
        if gain[best] > 0:
            row = rest[best] / size[best]
            towards -= np.outer(row, towards[best])
            rest -= np.outer(row, rest[best])
        order.append(best)
    return [live[n] for n in order]


def _halvings(width: int) -> list[int]:
    steps = [width]
    while steps[-1] > 1:
        steps.append(steps[-1] // 2)
    return steps
