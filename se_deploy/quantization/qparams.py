"""Choose each tensor's scale, offset and equalization by the error at the outputs of the layers that read it.

With x quantized in steps of d_c * s, the error of y = W x is, up to what correlates,

    sum_c |W_c|^2 ((d_c s)^2 / 12 + clipped_c)  +  sum_o step_o^2 / 12 * sum_c var(x_c / d_c)

Dividing each channel by its own size (d) shrinks the first sum and, where large and small columns then meet
in one row of the weights, enlarges the second: a power between 0 and 1 of the size is chosen per tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import calibration
from se_deploy.quantization.qdq import HIGHEST_LEVEL, LOWEST_LEVEL, QuantParams
from se_deploy.quantization.scales import UNSEEN_SCALE, representable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.calibration import Method, Statistics, Tails
    from se_deploy.protocols import FloatArray
    from se_deploy.quantization.layers import Layer

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Strengths of equalization: none to all of a channel's size; finer steps changed no choice by 0.1 dB."""
_LEAST_SHARE = 1 / 64  # of the largest channel's size: a channel that was quiet so far may not stay so
_DOUBTED_SAMPLES = 128
"""That a channel is as large as the largest counts as much as so many samples of its own size, where which
channels reach far varies by as much as its mean from sample to sample, and less where it varies less: a class
that few samples lack makes channels loud that were quiet. Chosen by trial, as docs/int8.md says."""
_PREMIUM = 4.0  # of the least error: the most to be paid for doubt, where samples differ as above
_PREMIUM_SAMPLES = 32
"""With so many of them, where a Mul divides. In the weights the number of samples makes no difference."""
_FEW_SAMPLES = 16  # below them nobody knows which channels are quiet: a text recognizer lost 2 dB to a limit
_UNLIMITED = 1e9  # times the least error: no two differ by that
_RANGE_SHARES = np.linspace(0.4, 1, 9)  # of the full range, tried as the range of the whole tensor
_GPTQ_FACTOR = 0.4  # of the error of plain rounding that GPTQ leaves, measured
_ONE_SIDED = 0.25  # a low end within this share of the high end: the channel ends there
_STEPS = calibration.LEVELS - 1
_CONSTANT = 2.0**-20  # of the largest value: a tensor that moves less is one that rounding in FP32 moves
_SAME = 1e-9  # two float64 numbers that rounding alone sets apart
_LEAST_POWER = 1e-30  # of an output: keeps quotients finite where a layer's output never moves
_UNIFORM_NOISE = 1 / 12  # variance of rounding to steps of 1


@dataclass(frozen=True, slots=True)
class Choice:
    """Quantization parameters, and the error that they are predicted to make at their readers' outputs."""

    params: QuantParams
    noise: float  # over the power of the readers' outputs


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may stand between a tensor and its quantizer, and how its readers' weights are quantized."""

    offset_folding: bool
    channel_equalization: bool
    per_channel_weights: bool


@dataclass(frozen=True, slots=True)
class Subject:
    """A tensor whose parameters are chosen, and what its error does."""

    statistics: Statistics
    expected: Statistics  # what other data is expected to show
    readers: Sequence[Layer]
    allowed: Allowed
    passed_on: FloatArray  # (C,) `importance` of the tensors behind residual Adds

    def seen_by(self, method: Method) -> Statistics:
        """Return the statistics that a method looks at: the error of clipping is that of data yet to come."""
        return self.expected if method == "mse" else self.statistics


def choose(subject: Subject, methods: Sequence[Method]) -> dict[Method, Choice]:
    """Return scale, offset and equalization of a tensor, by each method.

    A tensor that was 0 on all data says nothing of its range: its scale is a guess, with the reason.
    """
    statistics, allowed = subject.statistics, subject.allowed
    if not statistics.low.any() and not statistics.high.any():
        reason = f"it was 0 on all calibration data: the scale {UNSEEN_SCALE:g} is a guess"
        return {method: Choice(QuantParams(UNSEEN_SCALE, reason=reason), 0.0) for method in methods}
    tails = [] if statistics.tails is None else [statistics.tails]
    doubt, premium = _doubt(tails), _premium_of_mul(tails)
    chosen = {}
    sums: dict[bool, calibration.ClipError] = {}
    for method in methods:
        seen = subject.seen_by(method)
        if (is_expected := seen is subject.expected) not in sums:
            sums[is_expected] = calibration.ClipError(seen)
        error = _Error.of(subject, method, sums[is_expected])
        size = _sizes(error.low, error.high, allowed)
        factors = np.ones((1, len(size)))
        if allowed.channel_equalization:
            factors = _divisors(size / float(size.max()), doubt)
        # minmax promises that nothing is clipped
        shares = _RANGE_SHARES if method != "minmax" else np.ones(1)
        scales = representable((size / factors).max(axis=1)[:, None] * shares)
        totals = error(factors, scales)
        row = _least_row(totals.min(axis=1), premium)
        best = row, int(totals[row].argmin())
        factor, scale = factors[row], float(scales[best])
        params = QuantParams(
            scale,
            error.offset(factor * scale).astype(np.float32) if allowed.offset_folding else None,
            factor.astype(np.float32) if row else None,
        )
        chosen[method] = Choice(params, float(totals[best]))
    return chosen


def _divisors(share: FloatArray, doubt: float) -> FloatArray:
    """Return what to divide the channels by, (F, C): 1, powers of their shares, and of those as doubted."""
    shares = [np.maximum(share, _LEAST_SHARE), *([_doubted(share, doubt)] if doubt else [])]
    return np.stack([np.ones_like(share), *(one**power for one in shares for power in POWERS[1:])])


def _least_row(noise: FloatArray, premium: float) -> int:
    """Return the row of `_divisors` to take, by the error of each, (F,): the first of equal ones.

    One by doubted shares, unless the best by the shares as they are is better by more than the premium.
    """
    believed = len(POWERS)  # rows; all that there are where nothing is doubted
    bold = int(noise[:believed].argmin())
    if len(noise) <= believed:
        return bold
    beside = believed + int(noise[believed:].argmin())
    wary = beside if noise[beside] < noise[0] else 0
    return wary if noise[wary] <= premium * noise[bold] else bold


@dataclass(frozen=True, slots=True)
class _Error:
    """The error that quantizing a tensor is predicted to make, over the power of its readers' outputs."""

    subject: Subject
    low: FloatArray  # (C,) each channel's range
    high: FloatArray
    clipped: calibration.ClipError
    weight: FloatArray  # (C,) what an error of power 1 does
    usual: FloatArray  # (C,) what each channel takes most often of its ends and 0

    @classmethod
    def of(cls, subject: Subject, method: Method, clipped: calibration.ClipError) -> _Error:
        """Return the error with ranges by a method; `clipped` is of the statistics that it looks at."""
        low, high = _range(clipped, subject.readers, method, subject.allowed)
        weight = importance(subject.statistics, subject.readers) + subject.passed_on
        return cls(subject, low, high, clipped, weight, subject.statistics.usual())

    def __call__(self, factors: FloatArray, scales: FloatArray) -> FloatArray:
        """Return the error with the channels divided by each of `factors`, (F, C), at its scales, (F, S)."""
        step = factors[:, None] * scales[:, :, None]
        offset = self.offset(step)
        clipped = self.clipped(offset + LOWEST_LEVEL * step, offset + HIGHEST_LEVEL * step)
        of_weights = np.array([self._of_weights(factor) for factor in factors])
        of_input = (self.weight * (step**2 * _UNIFORM_NOISE + clipped)).sum(axis=-1)
        total: FloatArray = of_input + of_weights[:, None]
        return total

    def _of_weights(self, factor: FloatArray) -> float:
        """Return the error of the rounded weights of all readers, whatever the scale."""
        statistics, per_channel = self.subject.statistics, self.subject.allowed.per_channel_weights
        return sum(
            _weight_noise(layer, factor, statistics.variance, per_channel=per_channel)
            / _output_power(layer, statistics)
            for layer in self.subject.readers
        )

    def offset(self, step: FloatArray) -> FloatArray:
        """Return where the levels lie in steps of these sizes, (..., C)."""
        folds = self.subject.allowed.offset_folding
        return _offset(self.low, self.high, step, self.usual) if folds else np.zeros_like(step)

    def least(self, factors: FloatArray) -> FloatArray:
        """Return the error with the channels divided by each of `factors`, (F, C), at its best scale."""
        size = _sizes(self.low, self.high, self.subject.allowed)
        scales = (size / factors).max(axis=1)[:, None] * _RANGE_SHARES
        return np.asarray(self(factors, scales).min(axis=1))


def importance(statistics: Statistics, readers: Sequence[Layer]) -> FloatArray:
    """Return what an error of power 1 in each channel does, (C,), over the power of the readers' outputs."""
    total = np.zeros(len(statistics.variance))
    for layer in readers:
        total += layer.column_power / _output_power(layer, statistics)
    return total


def _output_power(layer: Layer, statistics: Statistics) -> float:
    return max(float((layer.column_power * statistics.variance).sum()), _LEAST_POWER)


def group_factor(subjects: Sequence[Subject]) -> FloatArray | None:
    """Return what to divide each channel of these tensors by, all of them by the same; None: by nothing.

    The strength whose predicted error is least, the tensors' summed up, in whatever order they come.
    """
    given = [s for s in subjects if s.statistics.low.any() or s.statistics.high.any()]
    errors = [_Error.of(subject, "mse", calibration.ClipError(subject.expected)) for subject in given]
    if not errors:
        return None
    # Where clipping each channel alone would cost least, and the channels' extents.
    cheapest = [(error.low, error.high) for error in errors]
    extents = [(s.statistics.low, s.statistics.high) for s in given]
    whole = [_with_zero(*one, one, s.readers) for one, s in zip(extents, given, strict=True)]
    tails = [s.statistics.tails for s in given if s.statistics.tails is not None]
    doubt = _doubt(tails)
    bold = wary = _Strength(_noise(errors, np.ones((1, len(errors[0].low))))[0], None)
    for found in (cheapest, whole):
        sizes = [_sizes(*one, subject.allowed) for one, subject in zip(found, given, strict=True)]
        largest = np.max([size / float(size.max()) for size in sizes], axis=0)
        bold = _better(bold, errors, np.maximum(largest, _LEAST_SHARE))
        wary = _better(wary, errors, _doubted(largest, doubt))
    return (wary if wary.noise <= _premium(tails) * bold.noise else bold).factor


def pays_beside(factor: FloatArray, subjects: Sequence[Subject], beside: Sequence[Statistics]) -> bool:
    """Whether dividing by `factor`, (C,), pays although tensors beside the layers' inputs are divided too.

    Each is quantized with one scale, and its error reaches the same readers. A channel that a ReLU leaves
    quiet may be loud in front of it, where a residual Add reads it.
    """
    tensors = [*(subject.statistics for subject in subjects), *beside]
    weight = sum((importance(s.statistics, s.readers) for s in subjects), np.zeros(len(factor)))

    def noise(divisor: FloatArray) -> float:
        steps = [(np.maximum(-one.low, one.high) / divisor).max() for one in tensors]
        return float((weight * divisor**2).sum() * np.square(steps).sum())

    return noise(factor) <= noise(np.ones_like(factor))


@dataclass(frozen=True, slots=True)
class _Strength:
    """Factors of a group, and the error that they are predicted to leave."""

    noise: float
    factor: FloatArray | None  # (C,); None: all 1


def _better(known: _Strength, errors: Sequence[_Error], share: FloatArray) -> _Strength:
    """Return the strength of least error: the one known, or a power of the channels' shares."""
    factors = np.stack([share**power for power in POWERS[1:]])
    for noise, factor in zip(_noise(errors, factors), factors, strict=True):
        if noise < known.noise:
            known = _Strength(noise, factor)
    return known


def _noise(errors: Sequence[_Error], factors: FloatArray) -> list[float]:
    """Return the error of all with each of `factors`, (F, C): by a sum that is the same in every order."""
    return [math.fsum(of_one) for of_one in zip(*(error.least(factors) for error in errors), strict=True)]


def _range(
    error: calibration.ClipError, readers: Sequence[Layer], method: Method, allowed: Allowed
) -> tuple[FloatArray, FloatArray]:
    """Return each channel's range by a method, wide enough for one channel at least to have a scale."""
    extent = error.statistics.low, error.statistics.high
    low, high = calibration.choose_ranges(error, (method,))[method]
    if not allowed.channel_equalization and method == "mse":  # the others clip to the whole tensor's range
        whole = calibration.choose_ranges(error.whole, (method,))
        begin = np.maximum(low, whole[method][0])
        low, high = begin, np.maximum(begin, np.minimum(high, whole[method][1]))
    # Of a tensor that is hardly ever not 0, clipping may leave nothing.
    low, high = (low, high) if (high > low).any() else extent
    return _with_zero(low, high, extent, readers)


def _with_zero(
    low: FloatArray, high: FloatArray, extent: tuple[FloatArray, FloatArray], readers: Sequence[Layer]
) -> tuple[FloatArray, FloatArray]:
    """Return ranges of a tensor of this extent that hold 0 where they must."""
    constant = bool((extent[1] - extent[0] <= _CONSTANT * np.maximum(-extent[0], extent[1])).all())
    # Padding is zeros, which must not be clipped; a constant tells its range only as a distance from 0.
    to_zero = constant or any(layer.padded for layer in readers)
    return (np.minimum(low, 0), np.maximum(high, 0)) if to_zero else (low, high)


def _doubt(tails: Sequence[Tails]) -> float:
    """Return how far, 0 to 1, the sizes of channels are doubted that tensors with these tails share.

    The tensor whose samples agree most on which channels are loud is the best witness of all.
    """
    asked = [(_DOUBTED_SAMPLES * one.dispersion, one.samples) for one in tails]
    return min((prior / (prior + samples) for prior, samples in asked), default=0.0)


def _premium(tails: Sequence[Tails]) -> float:
    """Return how many times the least error may be paid for doubt: the more, the more the samples differ."""
    return 1 + _PREMIUM * max((one.dispersion for one in tails), default=0.0)


def _premium_of_mul(tails: Sequence[Tails]) -> float:
    """Return `_premium` where a Mul of the tensor's own divides: more for fewer samples, any for very few."""
    known = min((one.samples for one in tails), default=_PREMIUM_SAMPLES)
    if known < _FEW_SAMPLES:
        return _UNLIMITED
    return 1 + (_premium(tails) - 1) * _PREMIUM_SAMPLES / known


def _doubted(sizes: FloatArray, doubt: float) -> FloatArray:
    """Return the channels' sizes over the largest, (C,), drawn towards 1 as far as they are doubted."""
    return np.maximum(doubt + (1 - doubt) * sizes, _LEAST_SHARE)


def _sizes(low: FloatArray, high: FloatArray, allowed: Allowed) -> FloatArray:
    """Return the step that each channel's range alone would have, (C,); not all are 0."""
    if allowed.offset_folding:
        return (high - low) / _STEPS
    return np.maximum(np.maximum(-low, high) / HIGHEST_LEVEL, 0)


def predicted_noise(layer: Layer, params: QuantParams, statistics: Statistics, *, per_channel: bool) -> float:
    """Return the predicted error at a layer's output over its power."""
    factor = (
        np.ones(len(statistics.variance))
        if params.equalization is None
        else params.equalization.astype(np.float64)
    )
    rounded = float((layer.column_power * (factor * params.scale) ** 2).sum()) * _UNIFORM_NOISE
    power = float((layer.column_power * statistics.variance).sum())
    of_weights = _weight_noise(layer, factor, statistics.variance, per_channel=per_channel)
    return (rounded + of_weights) / max(power, _LEAST_POWER)


def _offset(low: FloatArray, high: FloatArray, step: FloatArray, usual: FloatArray) -> FloatArray:
    """Return where the 256 levels lie: from the low end for one-sided channels, else around the middle.

    Moved by up to half a step, so that one of them is `usual`: 0 behind ReLU and HardSwish, black or white of
    an image. The rounding error of a value that comes again and again adds up.
    """
    fits = (high - low) <= _STEPS * step * (1 + _SAME)
    one_sided = (low >= 0) | (-low < _ONE_SIDED * high) | fits
    offset = np.where(one_sided, low - LOWEST_LEVEL * step, (low + high) / 2 + step / 2)
    moved: FloatArray = usual + np.round((offset - usual) / step) * step
    return moved


def _weight_noise(layer: Layer, factor: FloatArray, variance: FloatArray, *, per_channel: bool) -> float:
    """Return the predicted output error of rounding W diag(factor), summed over the output channels."""
    groups, _, channels, taps = layer.matrix.shape
    d = factor.reshape(groups, channels)
    steps = (layer.largest * d[:, None, :]).max(axis=2) / HIGHEST_LEVEL  # (G, O/G)
    if not per_channel:
        steps = np.full_like(steps, steps.max())
    power = (variance.reshape(groups, channels) / d**2).sum(axis=1) * taps
    return _GPTQ_FACTOR * float(((steps**2).sum(axis=1) * _UNIFORM_NOISE * power).sum())
