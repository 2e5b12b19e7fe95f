"""Read and write the calibration cache: what one run measured and the next need not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import calibration, files, graph
from se_deploy.errors import BadInput
from se_deploy.quantization.equalization import Group
from se_deploy.quantization.qdq import Beside, QuantParams
from se_deploy.schema import encode, load
from se_deploy.schema.files import (
    CalibratedBeside,
    CalibratedTensor,
    CalibrationCache,
    FoldedFactors,
    Stamp,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_ir as ir

    from se_deploy.calibration import Method, Statistics
    from se_deploy.protocols import FloatArray

_HINT = "delete the cache or name another one with --calib-cache; it is never used for something else"


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of a tensor by channel, (C,) each: what rounding weights needs of its statistics."""

    mean: tuple[float, ...]
    variance: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Cache:
    """What one run measured and the next need not."""

    method: Method  # the one that was chosen
    params: Mapping[str, QuantParams]
    moments: Mapping[str, Moments]  # of each tensor
    noise: Mapping[str, float] = field(default_factory=dict)  # per layer alone in INT8; empty: not measured
    float_tensors: Mapping[str, str] = field(default_factory=dict)  # those that no scale serves, and why
    factors: Mapping[Group, FloatArray] = field(default_factory=dict)  # folded into the weights around them

    def statistics(self) -> dict[str, Statistics]:
        """Return the statistics as far as rounding weights needs them: mean and variance."""
        return {
            name: calibration.Statistics(
                low=np.zeros(len(moments.mean)),
                high=np.zeros(len(moments.mean)),
                mean=np.asarray(moments.mean),
                variance=np.asarray(moments.variance),
                histogram=np.zeros((len(moments.mean), calibration.BINS)),
                histogram_low=np.zeros(len(moments.mean)),
                histogram_high=np.zeros(len(moments.mean)),
            )
            for name, moments in self.moments.items()
        }


def model_sha256(model: ir.Model) -> str:
    """Return the hash of a graph as it would be written."""
    return hashlib.sha256(graph.to_bytes(model)).hexdigest()


def write(path: Path, stamp: Stamp, cache: Cache) -> None:
    """Write `cache` to `path`, whole or not at all; `stamp` says what it is of."""
    content = CalibrationCache(
        stamp=stamp,
        method=cache.method,
        noise=cache.noise,
        tensors={
            name: CalibratedTensor(
                scale=params.scale,
                low=params.low,
                high=params.high,
                offset=None if params.offset is None else tuple(params.offset.tolist()),
                divisor=None if params.equalization is None else tuple(params.equalization.tolist()),
                residual=params.residual,
                mean=cache.moments[name].mean,
                variance=cache.moments[name].variance,
                reason=params.reason,
                beside=tuple(
                    CalibratedBeside(tensor=one.tensor, scale=one.scale, readers=one.readers)
                    for one in params.beside
                ),
            )
            for name, params in cache.params.items()
        },
        float_tensors=cache.float_tensors,
        folded=tuple(
            FoldedFactors(tensors=group.tensors, axis=group.axis, divisor=tuple(divisor.tolist()))
            for group, divisor in cache.factors.items()
        ),
    )
    files.write_text(path, encode(content, indent=1) + "\n")


def read(path: Path, stamp: Stamp) -> Cache | None:
    """Return the cache at `path`; None where there is none.

    Raises: BadInput where it is no cache, one for something else, or holds an impossible value; the message
    says how, and which field.
    """
    if not path.exists():
        return None
    content = load(path, CalibrationCache, what="a calibration cache", error=BadInput, hint=_HINT)
    differences = [
        f"{name} is {getattr(content.stamp, name)}, not {getattr(stamp, name)}"
        for name in Stamp.__struct_fields__
        if getattr(content.stamp, name) != getattr(stamp, name)
    ]
    if differences:
        raise BadInput(f"the calibration cache '{path}' does not fit: {'; '.join(differences)}", hint=_HINT)
    return Cache(
        method=content.method,
        params={name: _params(entry) for name, entry in content.tensors.items()},
        moments={name: Moments(entry.mean, entry.variance) for name, entry in content.tensors.items()},
        noise=content.noise,
        float_tensors=content.float_tensors,
        factors={
            Group(entry.tensors, entry.axis, len(entry.divisor)): np.asarray(entry.divisor)
            for entry in content.folded
        },
    )


def _params(entry: CalibratedTensor) -> QuantParams:
    return QuantParams(
        entry.scale,
        None if entry.offset is None else np.asarray(entry.offset, np.float32),
        None if entry.divisor is None else np.asarray(entry.divisor, np.float32),
        residual=entry.residual,
        reason=entry.reason,
        beside=tuple(Beside(one.tensor, one.scale, one.readers) for one in entry.beside),
    )
