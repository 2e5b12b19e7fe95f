"""The verb: measure, choose a grid per tensor, round the weights, write Q/DQ, judge on held-back samples."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import calibration, graph, se_blocks
from se_deploy.canonical.fold import fold_affine
from se_deploy.errors import BadInput, UnsupportedGraph
from se_deploy.precision import opsets, to_fp16, to_qdq
from se_deploy.protocols import silent
from se_deploy.quantization import grids, layers, rounding
from se_deploy.quantization.layers import Kept, Layer
from se_deploy.quantization.options import POLICIES, Policy, Quantized, QuantizeOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.calibration import Method, Statistics
    from se_deploy.data import Samples
    from se_deploy.precision import Grid, QuantizedLayer
    from se_deploy.protocols import Array, Progress, Runtime


def quantize(
    model: ir.Model,
    samples: Samples,
    *,
    runtime: Runtime,
    options: QuantizeOptions | None = None,
    progress: Progress = silent,
) -> Quantized:
    """Write `model` with its layers in INT8: explicit Q/DQ, symmetric, zero points 0.

    `runtime` runs the float network on `samples` and judges the
    result on the samples held back.

    Raises: UnsupportedGraph where there is nothing to quantize; BadData; BadInput for an unknown policy.
    """
    options = options or QuantizeOptions()
    policy = POLICIES.get(options.policy)
    if policy is None:
        raise BadInput(f"there is no policy '{options.policy}'", hint=f"choose one of {', '.join(POLICIES)}")
    model = opsets.at_least(model, opsets.FP16_SCALES if options.precision == "fp16" else opsets.PER_CHANNEL)
    model = graph.rewrite(model, fold_affine).model
    found, kept = _placed(model, policy, options)
    chosen, held = samples.split(options.hold_back)
    statistics = calibration.measure(
        model, {layer.tensor: layer.channel_axis for layer in found}, chosen, runtime, progress=progress
    )
    judge = Judge.of(model, held, runtime)
    tried = []
    for method in (options.method,) if options.method else calibration.METHODS:
        planned = _round(found, statistics, method, policy, options)
        tried.append((judge.sqnr_db(to_qdq(model, planned).model), method, planned))
    sqnr, method, planned = max(tried, key=lambda t: min(t[0].values()))
    result = to_qdq(model, planned).model
    warnings = samples.warnings
    if options.precision == "fp16":
        half = to_fp16(result)
        result, warnings = half.model, (*warnings, *half.warnings)
        sqnr = judge.sqnr_db(result)
    inside = sum(layer.macs for layer in found)
    return Quantized(
        model=result,
        policy=policy.name,
        method=method,
        samples=chosen.count,
        quantized=tuple(dict.fromkeys(layer.tensor for layer in found)),
        kept=kept,
        sqnr_db=sqnr,
        macs_int8_fraction=inside / max(1, inside + sum(k.macs for k in kept)),
        grids={layer.tensor: q.grid for layer, q in zip(found, planned, strict=True)},
        warnings=warnings,
    )


def _placed(
    model: ir.Model, policy: Policy, options: QuantizeOptions
) -> tuple[tuple[Layer, ...], tuple[Kept, ...]]:
    found, kept = layers.find(model, se_blocks.find(model), policy)
    if options.exclude_nodes:
        excluded = re.compile(options.exclude_nodes)
        out = [layer for layer in found if excluded.search(layer.node)]
        kept = (*kept, *(Kept(layer.node, "excluded by --exclude-nodes", layer.macs) for layer in out))
        found = tuple(layer for layer in found if layer not in out)
    if not found:
        raise UnsupportedGraph(
            "the graph has no convolution or fully connected layer to quantize",
            hint="give the FP32 graph that `se-deploy export` wrote",
        )
    return found, kept


def _round(
    found: Sequence[Layer],
    statistics: dict[str, Statistics],
    method: Method,
    policy: Policy,
    options: QuantizeOptions,
) -> list[QuantizedLayer]:
    readers: dict[str, list[Layer]] = {}
    for layer in found:
        readers.setdefault(layer.tensor, []).append(layer)
    chosen: dict[str, Grid] = {}
    for tensor, group in readers.items():
        shift = options.shift and all(
            layer.can_shift and (policy.shift == "all" or (policy.shift == "unpadded" and not layer.padded))
            for layer in group
        )
        chosen[tensor] = grids.choose(
            statistics[tensor],
            group,
            method,
            shift=shift,
            divide=options.divide and policy.divide,
            per_channel=policy.per_channel,
        )
    return [
        rounding.round_nearest(
            layer,
            chosen[layer.tensor],
            statistics[layer.tensor],
            per_channel=policy.per_channel and not (layer.op == "ConvTranspose" and layer.groups > 1),
        )
        for layer in found
    ]


@dataclass(frozen=True, slots=True)
class Judge:
    """Compares a graph's outputs with the float network's on the samples held back."""

    held: Samples
    runtime: Runtime
    size: int  # samples in one run
    wanted: tuple[dict[str, Array], ...]  # outputs of the float network, batch by batch

    @classmethod
    def of(cls, model: ir.Model, held: Samples, runtime: Runtime) -> Judge:
        """Run the float network once."""
        size = min(calibration.batch_size(model, sample_bytes=1 << 20), held.count)
        with runtime.open(model) as session:
            return cls(held, runtime, size, tuple(session.run(feeds) for feeds in held.batches(size)))

    def sqnr_db(self, model: ir.Model) -> dict[str, float]:
        """Give signal over quantization noise of every output, in dB."""
        noise: dict[str, float] = {}
        power: dict[str, float] = {}
        with self.runtime.open(model) as session:
            for feeds, wanted in zip(self.held.batches(self.size), self.wanted, strict=True):
                got = session.run(feeds)
                for name, array in wanted.items():
                    error = array.astype(np.float64) - got[name]
                    noise[name] = noise.get(name, 0.0) + float((error**2).sum())
                    power[name] = power.get(name, 0.0) + float((array.astype(np.float64) ** 2).sum())
        tiny = 1e-30
        return {n: float(10 * np.log10(max(power[n], tiny) / max(noise[n], tiny))) for n in power}
