"""Remove what changes nothing: onnxsim in a process of its own, checked against the graph it was given.

Simplifiers have changed results, lost the dynamic batch and crashed (pains: OnnxSlim#277, onnxsim#101,
#206), so that its answer is only taken where ONNX Runtime gives the same outputs on random inputs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.errors import BadModel

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.protocols import Array, Runtime, TensorSpec

_TIMEOUT_S = 600
# Where torch is installed onnxsim imports it for a feature that is not used here: three seconds of CPU.
_SIMPLIFY = """
import sys
sys.modules["torch"] = None
import onnx, onnxsim
model, same = onnxsim.simplify(onnx.load(sys.argv[1]))
onnx.save(model, sys.argv[2])
"""
REORDERED = 1e-4
"""Largest difference over the output's range: constant folding sums in another order."""
RESOLUTION = 1e-6
"""Error that FP32 makes on values around 1: random inputs may leave a sigmoid's output hardly above it."""


@dataclass(frozen=True, slots=True)
class Simplified:
    """The simplified graph, or the given one where the simplifier failed, and then why."""

    model: ir.Model
    nodes_before: int
    max_error: float  # over the range of the output, the worst output
    warnings: tuple[str, ...] = ()


def simplify(model: ir.Model, *, runtime: Runtime, seed: int = 0) -> Simplified:
    """Simplify a graph and verify it on random inputs at two batch sizes where the batch is free."""
    before = model.graph.num_nodes()
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given.onnx", Path(folder) / "made.onnx"
        graph.save(model, given)
        try:
            done = subprocess.run(
                [sys.executable, "-c", _SIMPLIFY, str(given), str(made)],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _kept(model, before, f"took more than {_TIMEOUT_S} s")
        if done.returncode or not made.exists():
            lines = done.stderr.strip().splitlines()
            return _kept(model, before, lines[-1] if lines else f"ended with {done.returncode}")
        try:
            small = graph.load(made)
        except BadModel as e:
            return _kept(model, before, e.message)
    for key in [key for key in small.metadata_props if key.startswith("onnxsim.")]:
        del small.metadata_props[key]
    small.metadata_props.update(model.metadata_props)
    if not _same_interface(model, small):
        return _kept(model, before, "changed the shape of an input or output")
    error = difference(model, small, runtime=runtime, seed=seed)
    if not error <= REORDERED:
        return _kept(model, before, f"changed the result by {error:.1e} of the output's range")
    return Simplified(small, before, error)


def difference(one: ir.Model, other: ir.Model, *, runtime: Runtime, seed: int = 0) -> float:
    """Give the largest difference of two graphs' outputs over the output's range, on random inputs."""
    worst = 0.0
    with runtime.open(one) as a, runtime.open(other) as b:
        free = any(spec.dims and spec.dims[0] is None for spec in a.inputs)
        for batch in (1, 3) if free else (1,):
            feeds = random_feeds(a.inputs, batch=batch, seed=seed + batch)
            mine, theirs = a.run(feeds), b.run(feeds)
            for name, want in mine.items():
                if want.size == 0 or want.dtype.kind != "f":
                    same = np.array_equal(want, theirs[name])
                    worst = max(worst, 0.0 if same else float("inf"))
                    continue
                gap = np.abs(want.astype(np.float64) - theirs[name].astype(np.float64)).max()
                reach = max(float(np.ptp(want)), float(np.abs(want).max()), RESOLUTION / REORDERED)
                worst = max(worst, float(gap) / reach if np.isfinite(gap) else float("inf"))
    return worst


def random_feeds(specs: tuple[TensorSpec, ...], *, batch: int, seed: int) -> dict[str, Array]:
    """Give normal random arrays that fit `specs`; a free first dimension is `batch`, any other free one 1."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in specs:
        shape = [d if d is not None else (batch if i == 0 else 1) for i, d in enumerate(spec.dims)]
        integer = spec.dtype.kind in "iu"
        values: Array = rng.integers(0, 2, shape) if integer else rng.standard_normal(shape)
        feeds[spec.name] = values.astype(spec.dtype)
    return feeds


def _same_interface(given: ir.Model, made: ir.Model) -> bool:
    """Whether inputs are the same, and outputs too but for sizes that were unknown and now are not."""
    inputs = [[(v.name, graph.dims(v)) for v in model.graph.inputs] for model in (given, made)]
    outputs = [[(v.name, graph.dims(v)) for v in model.graph.outputs] for model in (given, made)]
    return (
        inputs[0] == inputs[1]
        and len(outputs[0]) == len(outputs[1])
        and all(
            name == other and (before is None or (after is not None and _refines(after, before)))
            for (name, before), (other, after) in zip(*outputs, strict=True)
        )
    )


def _refines(after: tuple[int | None, ...], before: tuple[int | None, ...]) -> bool:
    return len(after) == len(before) and all(b in (None, a) for a, b in zip(after, before, strict=True))


def _kept(model: ir.Model, before: int, reason: str) -> Simplified:
    return Simplified(model, before, 0.0, (f"onnxsim {reason}: the graph was left as exported",))
