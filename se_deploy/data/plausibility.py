"""Does the data look like what the network expects? Scale, mean and colour order, read off the values.

Numbers alone do not say how they were prepared, so these are warnings. Each rule asks for what no set of
photographs, nor noise of the right scale, would show by chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy.errors import counted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from se_deploy.data.samples import Samples
    from se_deploy.protocols import Array, FloatArray
    from se_deploy.schema.input_spec import InputSpec

LOOKED_AT = 64
"""Samples that are looked at: means of so many photographs stand within a tenth of a deviation."""

_BYTE = 255.0
_BEYOND_UNIT = 10.0
"""Pixels in [0, 1] never reach this, however they were filtered; bytes do in any image that is not black."""
_MARGIN = 0.25
"""Of the expected range, at both ends: resizing with bicubic or Lanczos overshoots by up to a fifth."""
_OUTSIDE_SHARE = 0.01
"""Normal noise leaves the range of ImageNet's normalization and that margin with 0.1 % of its values."""
_CENTRED = -0.5
"""Where black lies below this, some pixel of real images lies below 0: none is darker than the mean else."""
_FAR_MEAN = 1.5
"""Deviations between the data's mean and 0. A set of images of one kind (digits on black with ImageNet's
normalization is at -1.5, products on white at 1.7) may come close, one of all kinds does not."""
_UNIT_REACH = 0.98
"""Of [-1, 1], that data scaled to it reaches at both ends."""
_UNIT_WIDER = 1.5
"""How much further than that data the expected range reaches at both ends, before they are told apart."""
_COLOUR_SAMPLES = 16
"""Fewer images have a colour of their own."""
_COLOUR_TILT = 0.03
"""Red minus blue of the expected mean, in [0, 1]: 0.079 in ImageNet; below it the order cannot be seen."""
_COLOUR_BAND = (0.5, 1.5)
"""The data's blue minus red over that: 1 where the order is turned round, -1 where it is right."""


_COPIES = 0.1
"""Share of the samples that are copies of others, up to which they change nothing."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What values were seen, over all samples and for each channel."""

    count: int  # samples
    low: float
    high: float
    means: FloatArray  # (C,)
    outside: float  # share of the values beyond the expected range and its margin


def spec_doubts(spec: InputSpec) -> tuple[str, ...]:
    """Return a warning where mean or std cannot be meant for pixels in [0, 1]."""
    if max(spec.mean) <= 1 and max(spec.std) <= 1:
        return ()
    given = f"mean {_shown(spec.mean)} and std {_shown(spec.std)} of '{spec.name}'"
    return (f"{given} look like those of bytes from 0 to 255; pixels here are in [0, 1]: divide both by 255",)


def copy_doubts(samples: Samples) -> tuple[str, ...]:
    """Return a warning where many samples are copies of others: each is counted, and shows nothing new."""
    count, differ = samples.count, len(set(samples.each or ()))
    if samples.each is None or count - differ <= _COPIES * count:
        return ()
    if differ == 1:
        return (f"all {count} samples are copies of one: what is measured on them is known of one sample",)
    others = "the others are copies of them"
    return (f"only {differ} of {count} samples differ, {others}: what is measured is known of {differ}",)


def held_doubts(chosen: Samples, held: Samples) -> tuple[str, ...]:
    """Return a warning where many of the samples that evaluate a choice are copies of those it is made on."""
    known = set(chosen.each or ())
    seen = sum(one in known for one in held.each or ())
    if seen <= _COPIES * held.count:
        return ()
    are = f"{seen} of {counted(held.count, 'sample')} held back {'is a copy' if seen == 1 else 'are copies'}"
    judged = "choices were evaluated on data that they were made on"
    return (f"{are} of samples that were calibrated on: {judged}; give data without copies",)


def array_doubts(batches: Iterable[Array], spec: InputSpec) -> tuple[str, ...]:
    """Return warnings where prepared arrays do not look like what `spec` prepares from images.

    `batches` are (N, C, H, W), or (N, H, W, C) where the spec says so; integers are not judged.
    """
    seen = _look(batches, spec)
    if seen is None:
        return ()
    black, white = _expected(spec)
    has = f"the data for '{spec.name}' lies between {seen.low:.3g} and {seen.high:.3g}"
    wants = f"the network's input spec makes {black.min():.3g} to {white.max():.3g} of pixels"
    hint = f"prepare it with mean {_shown(spec.mean)} and std {_shown(spec.std)} of pixels in [0, 1]"
    if seen.low >= 0 and _BEYOND_UNIT * max(1.0, white.max()) < seen.high <= _BYTE:
        return (f"{has}, {wants}: it looks like bytes from 0 to 255; {hint}",)
    if _plain(spec):
        return ()  # nobody may have said how the data is prepared; only bytes are certainly wrong
    if seen.low >= 0 and black.max() < _CENTRED:
        return (f"{has}, none of it below 0, {wants}: it looks like pixels before normalization; {hint}",)
    reach = (-seen.low, seen.high)
    if _UNIT_REACH <= min(reach) <= max(reach) <= 1 and min(-black.max(), white.min()) >= _UNIT_WIDER:
        return (f"{has}, {wants}: it looks like pixels scaled to [-1, 1]; {hint}",)
    if seen.outside > _OUTSIDE_SHARE:
        return (f"{has}, {seen.outside:.0%} of it beyond what images give; {wants}; {hint}",)
    if np.abs(seen.means).max() > _FAR_MEAN:
        means = f"the data for '{spec.name}' has channel means {_shown(seen.means)}"
        return (f"{means}, far from the 0 of normalized images; {hint}",)
    return _order_doubts(seen, spec)


def _order_doubts(seen: _Seen, spec: InputSpec) -> tuple[str, ...]:
    """Return a warning where red and blue seem exchanged."""
    if spec.channels != 3 or seen.count < _COLOUR_SAMPLES:  # noqa: PLR2004 - red, green, blue
        return ()
    expected = spec.mean[0] - spec.mean[2]
    pixels = seen.means * np.array(spec.std) + np.array(spec.mean)
    if expected < _COLOUR_TILT or not _COLOUR_BAND[0] < (pixels[2] - pixels[0]) / expected < _COLOUR_BAND[1]:
        return ()
    means = f"the channel means of the data for '{spec.name}', {_shown(pixels)} in [0, 1],"
    order = "in the opposite order: blue, green, red? Give red first"
    return (f"{means} fit the network's {_shown(spec.mean)} {order}",)


def _look(batches: Iterable[Array], spec: InputSpec) -> _Seen | None:
    black, white = _expected(spec)
    margin = _MARGIN * (white - black)
    count, size, outside, low, high = 0, 0, 0, np.inf, -np.inf
    sums = np.zeros(spec.channels)
    for batch in batches:
        if batch.dtype.kind != "f":
            return None
        values = (
            batch.astype(np.float64)
            if spec.layout == "NHWC"
            else np.moveaxis(batch.astype(np.float64), 1, -1)
        )
        count, size = count + len(values), size + values[..., 0].size
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        outside += int(((values < black - margin) | (values > white + margin)).sum())
        sums += values.sum(axis=tuple(range(values.ndim - 1)))
    return _Seen(count, low, high, sums / size, outside / (size * spec.channels)) if size else None


def _expected(spec: InputSpec) -> tuple[FloatArray, FloatArray]:
    """Return what black and white become in each channel."""
    mean, std = np.array(spec.mean, np.float64), np.array(spec.std, np.float64)
    return (0 - mean) / std, (1 - mean) / std


def _plain(spec: InputSpec) -> bool:
    return set(spec.mean) == {0.0} and set(spec.std) == {1.0}


def _shown(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
