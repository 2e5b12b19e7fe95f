"""The calibration cache: scales in JSON that a person can read, stamped with what they are for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import calibration, files, graph
from se_deploy.errors import BadInput
from se_deploy.quantization.qdq import QuantParams
from se_deploy.schema import encode, load
from se_deploy.schema.files import CalibratedTensor, CalibrationCache, Stamp

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_ir as ir

    from se_deploy.calibration import Statistics

_HINT = "delete the cache or name another one with --calib-cache; it is never used for something else"


@dataclass(frozen=True, slots=True)
class Cache:
    """What one run measured and the next need not."""

    stamp: Stamp
    method: str  # the one that was chosen
    params: Mapping[str, QuantParams]
    moments: Mapping[str, tuple[list[float], list[float]]]  # mean and variance per channel of each tensor
    noise: Mapping[str, float] = field(default_factory=dict)  # per layer alone in INT8; empty: not measured

    def statistics(self) -> dict[str, Statistics]:
        """Return the statistics as far as rounding weights needs them: mean and variance."""
        return {
            name: calibration.Statistics(
                low=np.zeros(len(mean)),
                high=np.zeros(len(mean)),
                mean=np.asarray(mean),
                variance=np.asarray(variance),
                histogram=np.zeros((len(mean), calibration.BINS)),
                histogram_low=np.zeros(len(mean)),
                histogram_high=np.zeros(len(mean)),
            )
            for name, (mean, variance) in self.moments.items()
        }


def model_sha256(model: ir.Model) -> str:
    """Return the hash of a graph as it would be written."""
    return hashlib.sha256(graph.to_bytes(model)).hexdigest()


def write(path: Path, cache: Cache) -> None:
    """Write `cache` to `path`, whole or not at all."""
    content = CalibrationCache(
        stamp=cache.stamp,
        method=cache.method,
        noise=cache.noise,
        tensors={name: _tensor(params, *cache.moments[name]) for name, params in cache.params.items()},
    )
    files.write_text(path, f"{encode(content, indent=1)}\n")


def read(path: Path, stamp: Stamp) -> Cache | None:
    """Return the cache at `path`; None where there is none.

    Raises: BadInput where it is no cache, or one for something else; the message says how.
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
        stamp=content.stamp,
        method=content.method,
        params={name: _params(tensor) for name, tensor in content.tensors.items()},
        moments={name: (list(t.mean), list(t.variance)) for name, t in content.tensors.items()},
        noise=content.noise,
    )


def _tensor(params: QuantParams, mean: list[float], variance: list[float]) -> CalibratedTensor:
    return CalibratedTensor(
        scale=params.scale,
        low=params.low,
        high=params.high,
        offset=None if params.offset is None else tuple(params.offset.tolist()),
        divisor=None if params.equalization is None else tuple(params.equalization.tolist()),
        residual=params.residual,
        mean=tuple(mean),
        variance=tuple(variance),
    )


def _params(tensor: CalibratedTensor) -> QuantParams:
    return QuantParams(
        tensor.scale,
        None if tensor.offset is None else np.asarray(tensor.offset, np.float32),
        None if tensor.divisor is None else np.asarray(tensor.divisor, np.float32),
        residual=tensor.residual,
    )
