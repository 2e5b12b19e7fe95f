"""Post-training quantization: measure, choose parameters, round weights, write Q/DQ, evaluate."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from se_deploy import graph
from se_deploy.errors import BadInput, counted
from se_deploy.protocols import in_turn, silent
from se_deploy.quantization import (
    cache,
    chain,
    corrected,
    equalization,
    fp16_ranges,
    fp16_rounding,
    gptq,
    mixed_precision,
    parameters,
    qdq,
    reconstruction,
    sensitivity,
)
from se_deploy.quantization.fp16 import to_fp16
from se_deploy.quantization.job import GPTQ, Job, Plan, evenly, named, prepare, told
from se_deploy.quantization.layers import FloatLayer, Layer, NoLayer
from se_deploy.quantization.options import QuantizationResult, QuantizeOptions
from se_deploy.schema import tool_version
from se_deploy.schema.files import Stamp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from se_deploy.data import Samples
    from se_deploy.protocols import Arrays, Each, Progress, Runtime
    from se_deploy.quantization.cache import Cache
    from se_deploy.quantization.qdq import QuantizedLayer, QuantParams


_NO_SIGNAL = 1e10  # noise over signal: no layer of eight bits makes 100 dB more than there is to lose


def quantize(
    model: ir.Model,
    samples: Samples,
    *,
    runtime: Runtime,
    fast: Runtime | None = None,
    options: QuantizeOptions | None = None,
    extremes: Sequence[Arrays] = (),
    calib_cache: Path | None = None,
    each: Each = in_turn,
    progress: Progress = silent,
) -> QuantizationResult:
    """Return `model` with its layers in INT8: explicit Q/DQ, symmetric, zero points 0.

    Part of `samples` is measured, and every choice is evaluated on the rest, which is held back: by
    `runtime`, node by node. `fast`, where given, runs the float network in its place, equal but for rounding.
    Over an FP16 base `extremes` are batches beside the samples that must not leave FP16's range. With
    `calib_cache`, scales and sensitivities are kept there and taken from there the next time. `each` works on
    the layers whose sensitivity is measured.

    Raises: UnsupportedGraph where there is nothing to quantize; BadData; BadInput for a cache of something
    else, or a goal that needs labels.
    """
    # The products are small and are taken beside the runtime's own threads: more threads make them slower.
    with threadpool_limits(1, user_api="blas"):
        return _quantize(
            model,
            samples,
            runtimes=(runtime, fast or runtime),
            options=options or QuantizeOptions(),
            extremes=extremes,
            calib_cache=calib_cache,
            each=each,
            progress=progress,
        )


def _quantize(
    model: ir.Model,
    samples: Samples,
    *,
    runtimes: tuple[Runtime, Runtime],
    options: QuantizeOptions,
    extremes: Sequence[Arrays],
    calib_cache: Path | None,
    each: Each,
    progress: Progress,
) -> QuantizationResult:
    policy = options.policy
    kept = None if calib_cache is None else (calib_cache, _stamp(model, samples, options))
    known = None if kept is None else cache.read(*kept)
    job = prepare(model, samples, runtimes, options)
    plan: Plan | None = None
    if kept is not None and known is not None:
        job = _equalized(job, known)
        _check_pairs(kept[0], known, job.model)
    else:
        known, job, plan = parameters.choose(job, progress)
        if kept is not None:
            cache.write(*kept, known)
    job = job.without_tensors(known.float_tensors)
    if kept is not None:
        _check_complete(kept[0], known, job.layers)
    noise: Mapping[str, float] = parameters.predicted(job, known.params, known.statistics())
    measured = options.goal.asked or bool(options.float_macs)  # the policy's own share is too small to pay it
    if measured:
        if not known.noise:
            rounded = parameters.rounded(job, known.params, known.statistics())
            alone = sensitivity.measure(rounded, job.sensitivity_evaluator(), each=each, progress=progress)
            known = dataclasses.replace(known, noise=alone)
            if kept is not None:
                cache.write(*kept, known)
        noise = known.noise
    cost = job.added_ms if options.goal.asked else parameters.macs_of
    ranked = sensitivity.rank(job.layers, noise, cost)
    in_float = sensitivity.within_budget(ranked, job.float_budget())
    if plan is None or measured:
        plan = job.evaluated(
            mixed_precision.without(parameters.rounded(job, known.params, known.statistics()), in_float)
        )
    if options.gptq:
        plan = _with_gptq(job, plan, known.params, progress)
    if options.bias_correction:
        plan = corrected.with_biases(job, plan, progress)
    params, rebuilt = known.params, None
    if options.reconstruct is not None:
        plan, rebuilt = _reconstructed(job, plan, options.reconstruct, progress)
        read_by = {layer.node: layer.tensor for layer in job.layers}
        params = {**params, **{read_by[layer.node]: layer.params for layer in plan.layers}}
    planned, evaluation = plan.layers, plan.evaluation
    warnings = [*samples.warnings, *job.warnings]
    rest = [layer for layer in ranked if layer not in in_float] if options.goal.asked else []
    remaining = corrected.Remaining(job, plan, progress)
    curve = mixed_precision.tradeoff_curve(planned, rest, remaining, job.macs, job.added_ms) if rest else ()
    if options.goal.asked:
        count = mixed_precision.fewest_float_layers(planned, rest, remaining, options.goal)
        if count is None:
            warnings.append("the goal is not reached even with every layer in float")
        in_float += rest if count is None else rest[:count]
        plan = remaining.plan(mixed_precision.without(planned, in_float))
        planned, evaluation = plan.layers, plan.evaluation
    result = qdq.to_qdq(job.model, planned).model
    warnings += _breaks(result) if policy.whole_chain else []
    half = run = None
    if options.base_precision == "fp16":
        half = to_fp16(result, ranges=_ranges(job, result, extremes))
        result = half.model
        warnings += half.warnings
        run = fp16_rounding.evaluation(result)
        evaluation = job.evaluator(run.model)
    inside = [layer for layer in job.layers if layer not in in_float]
    fraction = sum(layer.macs for layer in inside) / max(1, job.macs)
    warnings += [*_notes(params, inside, planned), *job.missed_share(fraction)]
    return QuantizationResult(
        model=result,
        policy=policy.name,
        method=known.method,
        samples=job.chosen.count,
        quantized=tuple(dict.fromkeys(layer.tensor for layer in inside)),
        float_layers=(
            *job.float_layers,
            *(_left_in_float(layer, noise, measured=measured) for layer in in_float),
        ),
        sqnr_db=evaluation.sqnr_db(),
        macs_int8_fraction=fraction,
        params={layer.tensor: params[layer.tensor] for layer in inside},
        warnings=tuple(warnings),
        curve=curve,
        kept_fp32=half.kept if half else (),
        unchecked=half.unchecked if half else (),
        reconstruction=rebuilt,
        rounding=run.rounding if run else None,
    )


def _reconstructed(
    job: Job, plan: Plan, request: reconstruction.Request, progress: Progress
) -> tuple[Plan, reconstruction.Reconstruction]:
    """Return the plan with trained blocks where the whole network is better with them, and what was done."""
    task = reconstruction.Task(job.model, job.layers, plan.layers, job.chosen, job.block)
    trained = request.trainer(task, seconds=request.seconds, progress=progress)
    after = job.evaluated(list(trained.planned))
    kept = any(b.kept for b in trained.blocks) and after.evaluation.score_db > plan.evaluation.score_db
    before_db, after_db = (min(one.evaluation.sqnr_db().values()) for one in (plan, after))
    done = reconstruction.Reconstruction(request.seconds, kept, trained.blocks, before_db, after_db)
    return (after if kept else plan), done


def _ranges(job: Job, model: ir.Model, extremes: Sequence[Arrays]) -> fp16_ranges.Ranges:
    """Return the ranges of the Q/DQ graph's tensors on the samples held back and on the extremes."""
    held = job.evaluator.held.batches(job.block)
    kinds = ["data", *(["extremes"] if extremes else [])]
    return fp16_ranges.measure(model, itertools.chain(held, extremes), job.fast, kinds=kinds)


def _stamp(model: ir.Model, samples: Samples, options: QuantizeOptions) -> Stamp:
    used = (options.hold_back, options.exclude_nodes, options.offset_folding, options.channel_equalization)
    return Stamp(
        onnx_sha256=cache.model_sha256(model),
        data_sha256=samples.sha256,
        samples=samples.count,
        policy=options.policy.name,
        method=options.method or "auto",
        options=repr(used),
        version=tool_version(),
    )


def _equalized(job: Job, known: Cache) -> Job:
    """Return the job with the factors in its weights that an earlier run chose. Raises: BadInput."""
    if not known.factors:
        return job
    possible = equalization.groups(job.model, {layer.tensor for layer in job.layers}, pointwise=True)
    if unknown := [group for group in known.factors if group not in possible]:
        raise BadInput(
            f"the calibration cache: its factors of {named(unknown[0].tensors)} do not fit the graph",
            hint="delete the cache or name another one with --calib-cache",
        )
    try:
        return job.equalized(known.factors)
    except NoLayer as e:
        raise BadInput(
            f"the calibration cache: its factors do not fit the graph: {e}",
            hint="delete the cache or name another one with --calib-cache",
        ) from e


def _check_complete(path: Path, known: Cache, candidates: Sequence[Layer]) -> None:
    """Raise BadInput where a cache lacks what a layer needs."""
    for layer in candidates:
        entry = known.moments.get(layer.tensor)
        if entry is None or len(entry.mean) != layer.channels:
            what = (
                "is missing"
                if entry is None
                else f"has {counted(len(entry.mean), 'channel')}, not {layer.channels}"
            )
            raise BadInput(
                f"the calibration cache '{path}': tensors.{layer.tensor} {what}",
                hint="delete the cache or name another one with --calib-cache",
            )
        if known.noise and layer.node not in known.noise:
            raise BadInput(
                f"the calibration cache '{path}': noise.{layer.node} is missing",
                hint="delete the cache or name another one with --calib-cache",
            )


def _check_pairs(path: Path, known: Cache, model: ir.Model) -> None:
    """Raise BadInput where a cache has pairs on tensors, or for nodes, that the graph does not have."""
    readers = {name: {use.node.name for use in value.uses()} for name, value in graph.values(model).items()}
    for tensor, params in known.params.items():
        for i, one in enumerate(params.beside):
            strange = [name for name in one.readers if name not in readers.get(one.tensor, ())]
            if one.tensor not in readers or strange:
                what = f"reads '{one.tensor}' in '{strange[0]}'" if strange else f"names '{one.tensor}'"
                raise BadInput(
                    f"the calibration cache '{path}': tensors.{tensor}.beside[{i}] {what}, which the graph "
                    "does not",
                    hint="delete the cache or name another one with --calib-cache",
                )


def _breaks(written: ir.Model) -> list[str]:
    """Return what breaks the chain of INT8 layers although the form keeps it whole: the network does."""
    found = chain.lint_breaks(written)
    places = told([f"at '{one.node}': {one.cause}" for one in found])
    return [f"the network itself breaks the INT8 chain {places}"] if found else []


def _notes(
    params: Mapping[str, QuantParams], inside: Sequence[Layer], planned: Sequence[QuantizedLayer]
) -> list[str]:
    """Return what scales were not chosen by the data, in a user's words."""
    tensors = dict.fromkeys(layer.tensor for layer in inside)
    notes = [f"the tensor '{name}': {params[name].reason}" for name in tensors if params[name].reason]
    raised = [layer.node for layer in planned if layer.raised_for_bias]
    if raised:
        notes.append(
            f"the weight scales of {counted(len(raised), 'layer')} were raised, so that the biases fit "
            f"into the int32 sums of a runtime that adds them there ({named(raised)})"
        )
    return notes


def _with_gptq(job: Job, plan: Plan, params: Mapping[str, QuantParams], progress: Progress) -> Plan:
    """Return the plan with weights rounded by GPTQ, or the plan itself where that is surely better."""
    names = {layer.node for layer in plan.layers}
    rounded = job.evaluated(
        gptq.round_layers(
            job.model,
            [layer for layer in job.layers if layer.node in names],
            params,
            plan.layers,
            evenly(job.chosen, GPTQ.samples(job.macs), job.block),
            runtime=job.fast,
            per_channel=job.policy.per_channel_weights,
            progress=progress,
        )
    )
    return plan if plan.evaluation.surely_better(rounded.evaluation) else rounded


def _left_in_float(layer: Layer, noise: Mapping[str, float], *, measured: bool) -> FloatLayer:
    whose = "the network's output" if measured else "its own output, as predicted"
    return FloatLayer(layer.node, _noise_in_words(noise[layer.node], whose), layer.macs)


def _noise_in_words(noise: float, whose: str) -> str:
    """Say what noise over signal is; a ratio to what does not vary is no figure to print."""
    if noise <= 0:
        return f"alone in INT8 it makes no noise in {whose}"
    if noise >= _NO_SIGNAL:
        return f"the calibration data does not vary {whose}, so that the noise in INT8 has no measure"
    return f"alone in INT8 it makes noise at {10 * np.log10(noise):.0f} dB of {whose}"
