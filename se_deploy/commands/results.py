"""What each verb gives back, and its JSON; the keys are a contract that other programs read."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import se_deploy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from se_deploy.comparison import Divergence, Parity, Tolerance
    from se_deploy.passes.search import SearchResult
    from se_deploy.profiling.latency import Latency
    from se_deploy.quantization.fp16_ranges import KeptFp32
    from se_deploy.se_blocks import Census, SEBlock

Json = dict[str, Any]
"""What gave the numbers: the engine itself, its ONNX file rounded where its plan rounds, or an ONNX file."""


def head(command: str, warnings: Sequence[str]) -> Json:
    """Give the keys that every object has."""
    return {
        "schema": f"se-deploy/{command}/1",
        "tool_version": se_deploy.__version__,
        "warnings": list(warnings),
    }


def relative(path: Path, folder: Path) -> str:
    """Give `path` as seen from the folder of the output."""
    return Path(os.path.relpath(path, folder)).as_posix()


def finite(value: float | None) -> float | None:
    """Give a number that JSON can hold; null stands for NaN and infinity."""
    return value if value is not None and math.isfinite(value) else None


def block_json(block: SEBlock) -> Json:
    """One SE block of the census."""
    return {
        "output": block.output,
        "kind": block.kind,
        "channels": block.channels,
        "reduced": block.reduced,
        "ratio": block.ratio,
        "activation": block.activation,
        "gate": block.gate,
        "form": block.form,
        "spelling": list(block.spelling),
        "squeeze_input": block.squeeze_input,
        "scale_node": block.scale_node,
        "params": block.params,
        "placement": block.placement,
        "followed_by": block.followed_by,
    }


def fp16_json(kept: Sequence[KeptFp32], unchecked: Sequence[str]) -> Json:
    """What stays in FP32 within FP16, and what could not be checked of it."""
    return {
        "kept_fp32": [{"node": one.node, "reason": one.reason} for one in kept],
        "unchecked": list(unchecked),
    }


def census_json(census: Census) -> Json:
    """`blocks` and `rejected`."""
    return {
        "blocks": [block_json(block) for block in census.blocks],
        "rejected": [{"output": no.output, "reason": no.reason} for no in census.rejected],
    }


@dataclass(frozen=True, slots=True)
class Judged:
    """One candidate of `parity`: measured, and judged by the tolerance of its precision."""

    path: str
    parity: Parity
    tolerance: Tolerance
    failures: tuple[str, ...]
    divergence: Divergence | None
    checked_as: str | None  # what stood in for the artifact, in words; None where it ran itself
    evaluated: str  # "engine", "plan-rounded", or the name of the backend that ran it
    rounding: str | None = None  # where its numbers were rounded to FP16, in words

    @property
    def passed(self) -> bool:
        """Whether every output is within the tolerance."""
        return not self.failures

    def json(self) -> Json:
        """One entry of `candidates`."""
        found = self.divergence
        return {
            "path": self.path,
            "passed": self.passed,
            "preset": self.tolerance.preset,
            "samples": self.parity.samples,
            "accuracy": self.parity.candidate_accuracy,
            "checked_as": self.checked_as,
            "evaluated": self.evaluated,
            "rounding": self.rounding,
            "failures": list(self.failures),
            "outputs": [
                {
                    "name": output.name,
                    "max_abs": finite(output.max_abs),
                    "max_rel": finite(output.max_rel),
                    "cosine": finite(output.cosine),
                    "sqnr_db": finite(output.sqnr_db),
                    "top1_agreement": output.top1_agreement,
                    "passed": not self.tolerance.failures(output),
                }
                for output in self.parity.outputs
            ],
            "first_divergence": None
            if found is None
            else {
                "tensor": found.tensor,
                "node": found.node,
                "op_type": found.op_type,
                "relative_rms": finite(found.relative_rms),
            },
        }


@dataclass(frozen=True, slots=True)
class Timed:
    """One artifact of `profile`."""

    path: str
    runtime: str
    device: str
    batch: int
    latency: Latency
    speedup: float | None  # images per second over the reference's at the same batch; None where unstable
    reference: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of the inputs that were timed

    def failures(
        self, *, max_p50_ms: float | None = None, min_speedup: float | None = None
    ) -> tuple[str, ...]:
        """Return in words which limits it does not keep; the reference is held to none.

        An unstable timing keeps no limit: it is not judged, and a gate on it does not pass.
        """
        if self.reference:
            return ()
        if max_p50_ms is None and min_speedup is None:
            return ()
        if not self.latency.stable:
            return (f"not judged: the timing is unstable ({self.latency.rule})",)
        found = []
        p50 = self.latency.p50_ms
        if max_p50_ms is not None and not p50 <= max_p50_ms:
            found.append(f"the median is {p50:.4g} ms, above {max_p50_ms:g} ms")
        if min_speedup is not None:
            if self.speedup is None:
                found.append("not judged: no speed-up is known, see the warnings")
            elif not self.speedup >= min_speedup:
                found.append(
                    f"it is {self.speedup:.2f} times as fast as the reference, below {min_speedup:g}"
                )
        return tuple(found)

    def json(self) -> Json:
        """One entry of `artifacts`."""
        t = self.latency
        return {
            "path": self.path,
            "runtime": self.runtime,
            "device": self.device,
            "batch": self.batch,
            "p50_ms": t.p50_ms,
            "p90_ms": t.p90_ms,
            "p99_ms": t.p99_ms,
            "mean_ms": t.mean_ms,
            "std_ms": t.std_ms,
            "throughput_per_s": t.throughput_per_s,
            "samples": len(t.samples_ms),
            "stable": t.stable,
            "power_w": finite(t.power_w),
            "energy_mj": finite(t.energy_mj),
            "speedup_vs_reference": self.speedup,
            "shapes": {name: list(dims) for name, dims in self.shapes.items()},
        }


def refused_json(found: SearchResult | None) -> list[list[str]]:
    """`refused`: [rewrite, block, reason] of each rewrite that was allowed and not possible at a block."""
    return [] if found is None else [[no.rewrite, no.site, no.reason] for no in found.refused]


def waterfall_json(found: SearchResult) -> list[Json]:
    """The planned cost after each rewrite, the graph as given first."""
    if found.baseline is None:
        return []
    states = [("as given", (), found.baseline), *((s.rewrite, s.sites, s.after) for s in found.steps)]
    return [
        {
            "rewrite": name,
            "block": ", ".join(sites) or None,
            "kernels": cost.kernels,
            "activation_bytes": cost.activation_bytes,
        }
        for name, sites, cost in states
    ]
