"""Where two graphs part: their inner tensors, compared in order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from se_deploy import batching

if TYPE_CHECKING:
    from se_deploy.protocols import Array, Arrays, Runtime


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
