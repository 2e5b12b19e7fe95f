"""The calibration cache: scales in JSON that a person can read, stamped with what they are for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from se_deploy import __version__, calibration, files, graph
from se_deploy.errors import BadInput
from se_deploy.quantization.qdq import QuantParams

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_ir as ir

    from se_deploy.calibration import Statistics

SCHEMA = "se-deploy/calibration-cache/1"
_HINT = "delete the cache or name another one with --calib-cache; it is never used for something else"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a cache is for; all of it must agree."""

    onnx_sha256: str
    data_sha256: str
    samples: int
    policy: str
    method: str  # as asked for: "auto" or a method
    options: str  # everything else that the scales depend on
    version: str = str(__version__)


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
    tensors = {
        name: {
            "scale": params.scale,
            "low": params.low,
            "high": params.high,
            "offset": None if params.offset is None else params.offset.tolist(),
            "divisor": None if params.equalization is None else params.equalization.tolist(),
            "residual": params.residual,
            "mean": cache.moments[name][0],
            "variance": cache.moments[name][1],
        }
        for name, params in cache.params.items()
    }
    content = {
        "schema": SCHEMA,
        "stamp": dataclasses.asdict(cache.stamp),
        "method": cache.method,
        "noise": dict(cache.noise),
        "tensors": tensors,
    }
    files.write_text(path, json.dumps(content, indent=1) + "\n")


def read(path: Path, stamp: Stamp) -> Cache | None:
    """Return the cache at `path`; None where there is none.

    Raises: BadInput where it is no cache, or one for something else; the message says how.
    """
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        stamped = Stamp(**content["stamp"])
        cache = Cache(
            stamp=stamped,
            method=content["method"],
            params={name: _params(entry) for name, entry in content["tensors"].items()},
            moments={name: (entry["mean"], entry["variance"]) for name, entry in content["tensors"].items()},
            noise=content["noise"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as e:
        raise BadInput(f"'{path}' is no calibration cache: {e}", hint=_HINT) from e
    fields = [f.name for f in dataclasses.fields(Stamp)]
    differences = [
        f"{name} is {getattr(stamped, name)}, not {getattr(stamp, name)}"
        for name in fields
        if getattr(stamped, name) != getattr(stamp, name)
    ]
    if differences:
        raise BadInput(f"the calibration cache '{path}' does not fit: {'; '.join(differences)}", hint=_HINT)
    return cache


def _params(entry: dict[str, Any]) -> QuantParams:
    offset, equalization = entry["offset"], entry["divisor"]
    return QuantParams(
        float(entry["scale"]),
        None if offset is None else np.asarray(offset, np.float32),
        None if equalization is None else np.asarray(equalization, np.float32),
        residual=entry["residual"],
    )
