"""Choose the parameters of all tensors: measure, equalize, and take the method that is surely better."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import calibration, graph
from se_deploy.protocols import silent
from se_deploy.quantization import (
    equalization,
    mixed_precision,
    placement,
    qdq,
    qparams,
    residual,
    rounding,
    scales,
    sensitivity,
)
from se_deploy.quantization.cache import Cache, Moments
from se_deploy.quantization.evaluator import surely_better
from se_deploy.quantization.layers import NoLayer

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import onnx_ir as ir

    from se_deploy.calibration import Method, Statistics
    from se_deploy.protocols import FloatArray, Progress
    from se_deploy.quantization.evaluator import Evaluation
    from se_deploy.quantization.job import Job, Plan
    from se_deploy.quantization.layers import Layer
    from se_deploy.quantization.policies import Policy
    from se_deploy.quantization.qdq import QuantizedLayer, QuantParams

_DEFAULT_METHOD: Method = "mse"
"""Scales of least predicted error."""
_OTHER_METHODS: tuple[Method, ...] = ("percentile", "entropy")
"""Tried beside it where the data may hold what should not decide: they are blind to single values. Taking the
best of all methods on some tens of samples was tried: chance, and with more samples it cost up to 6 dB."""
_FEWEST_HELD = 6  # samples that may speak for another method: four did, and cost a text detector 5 dB
_PROMISE = 1.4  # times less rounding noise than the default's: else it is not worth an evaluation


def choose(job: Job, progress: Progress) -> tuple[Cache, Job, Plan]:
    """Return parameters of all tensors, the job that they are for (equalized, maybe) and the plan of them."""
    here = _Measured.of(job, progress)
    method = job.options.method or _DEFAULT_METHOD
    params = here.params(method)[method]
    plan = here.planned(params)
    if job.options.method is None and job.held_back and job.evaluator.held.count >= _FEWEST_HELD:
        for other, theirs in here.params(*_OTHER_METHODS).items():
            if here.noise(theirs) * _PROMISE < here.noise(params):
                tried = here.planned(theirs)
                found = (tried.evaluation, plan.evaluation)
                if found[0].surely_better(found[1]) and _holds_in_all_folds(
                    job, other, method, found, progress
                ):
                    method, params, plan = other, theirs, tried
    moments = {
        name: Moments(tuple(s.mean.tolist()), tuple(s.variance.tolist()))
        for name, s in here.statistics.items()
    }
    known = Cache(method, params, moments, float_tensors=here.float_tensors, factors=here.factors)
    return known, here.job, plan


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the samples that a job chooses on say of its tensors."""

    job: Job  # equalized, maybe, and without the tensors that stay in float
    statistics: Mapping[str, Statistics]
    subjects: Mapping[str, qparams.Subject]
    placed: placement.Placement
    adds: Collection[str]  # tensors that residual Adds read quantized
    float_tensors: Mapping[str, str]  # and why they stay so
    factors: Mapping[equalization.Group, FloatArray]

    @classmethod
    def of(cls, job: Job, progress: Progress) -> _Measured:
        """Run the job's samples through its network once."""
        placed = placement.place(job.model, job.layers) if job.policy.whole_chain else placement.Placement()
        axes = {pair.tensor: 1 for pair in placed.pairs}
        axes |= {layer.tensor: layer.channel_axis for layer in job.layers}
        exact = job.options.method == "minmax"
        statistics = calibration.measure(
            job.model,
            axes,
            job.chosen,
            job.fast,
            positions=calibration.POSITIONS if exact else calibration.TAIL_POSITIONS,
            progress=progress,
        )
        float_tensors = {
            name: reason
            for name, seen in statistics.items()
            if (
                reason := scales.out_of_range(
                    float(seen.low.min()), float(seen.high.max()), qdq.HIGHEST_LEVEL
                )
            )
        }
        job = job.without_tensors(float_tensors)
        placed = placed.without(float_tensors)
        tensors = dict.fromkeys(layer.tensor for layer in job.layers)
        shared = residual.read_by_adds(job.model, tensors) if job.policy.quantize_residual else set()
        tied = shared | placed.tied
        adds: set[str] = set() if job.policy.whole_chain else shared  # else pairs are placed one by one
        # Once: dividing a tensor divides what is expected of it.
        expected = {name: statistics[name].expected() for name in tensors}
        beside = {pair.tensor: statistics[pair.tensor] for pair in placed.pairs if pair.used_by}
        job, factors = _equalized(job, _equalization(job, _subjects(job, statistics, expected, tied), beside))
        if factors:
            statistics, expected = _divided(statistics, factors), _divided(expected, factors)
        subjects = _subjects(job, statistics, expected, tied)
        return cls(job, statistics, subjects, placed, adds, float_tensors, factors)

    def params(self, *methods: Method) -> dict[Method, dict[str, QuantParams]]:
        """Return the parameters of all tensors by each method."""
        chosen = {name: qparams.choose(one, methods) for name, one in self.subjects.items()}
        found = {}
        for method in methods:
            own = {
                name: dataclasses.replace(one[method].params, residual=name in self.adds)
                for name, one in chosen.items()
            }
            found[method] = placement.with_pairs(own, self.placed, self.job.layers, self.statistics, method)
        return found

    def planned(self, params: Mapping[str, QuantParams]) -> Plan:
        """Return the plan of these parameters, with as much left in float as the form allows."""
        job = self.job
        ranked = sensitivity.rank(job.layers, predicted(job, params, self.statistics), macs_of)
        in_float = sensitivity.within_budget(ranked, job.float_budget())
        return job.evaluated(mixed_precision.without(rounded(job, params, self.statistics), in_float))

    def noise(self, params: Mapping[str, QuantParams]) -> float:
        """Return the noise that these parameters are predicted to make, over all layers."""
        return sum(predicted(self.job, params, self.statistics).values())


def _holds_in_all_folds(
    job: Job, other: Method, plain: Method, held_back: tuple[Evaluation, Evaluation], progress: Progress
) -> bool:
    """Whether the other method is surely better where every sample has been held back once.

    `held_back` are the two on the samples that are held back anyway; each other part of the samples is
    judged by what the rest of them chooses. Only asked where those already say so: it costs a run of all
    samples for each part.
    """
    pairs = [held_back]
    for turn in range(1, job.parts):
        progress("cross-validation", turn, job.parts)
        there = _Measured.of(job.at_turn(turn), silent)
        tried, kept = (there.planned(there.params(one)[one]).evaluation for one in (other, plain))
        pairs.append((tried, kept))
    progress("cross-validation", job.parts, job.parts)
    return surely_better(*zip(*pairs, strict=True))


def _subjects(
    job: Job, statistics: Mapping[str, Statistics], expected: Mapping[str, Statistics], shared: set[str]
) -> dict[str, qparams.Subject]:
    """Return each tensor to be quantized, with its readers and what may be done to it.

    `shared` are those that others than layers read quantized too.
    """
    readers: dict[str, list[Layer]] = {}
    for layer in job.layers:
        readers.setdefault(layer.tensor, []).append(layer)
    values = graph.values(job.model)
    weight = {name: qparams.importance(statistics[name], group) for name, group in readers.items()}
    behind = residual.behind_adds(job.model, readers) if shared else {}
    return {
        tensor: qparams.Subject(
            statistics[tensor],
            expected[tensor],
            group,
            qparams.Allowed(
                offset_folding=job.options.offset_folding
                and tensor not in shared
                and all(_may_fold_offset(layer, values[tensor], job.policy) for layer in group),
                channel_equalization=job.options.channel_equalization
                and job.policy.channel_equalization
                and tensor not in shared,
                per_channel_weights=job.policy.per_channel_weights,
            ),
            sum((weight[name] for name in behind.get(tensor, ())), np.zeros_like(weight[tensor])),
        )
        for tensor, group in readers.items()
    }


def _equalization(
    job: Job, subjects: Mapping[str, qparams.Subject], beside: Mapping[str, Statistics]
) -> dict[equalization.Group, FloatArray]:
    """Return what each group's channels are divided by, where the policy has that in the weights.

    `beside`: tensors that operators other than layers read quantized.
    """
    if not (job.policy.folded_equalization and job.options.channel_equalization):
        return {}
    found = {}
    for group in equalization.groups(job.model, subjects, pointwise=True):
        own = [subjects[name] for name in group.tensors if name in subjects]
        others = [beside[name] for name in group.tensors if name in beside and name not in subjects]
        factor = qparams.group_factor(own)
        if factor is not None and (not others or qparams.pays_beside(factor, own, others)):
            found[group] = factor
    return found


def _equalized(
    job: Job, factors: dict[equalization.Group, FloatArray]
) -> tuple[Job, dict[equalization.Group, FloatArray]]:
    """Return the job with these factors in its weights, and the factors.

    Without those that would make weights larger or smaller than any scale serves.
    """
    if not factors:
        return job, {}
    try:
        return job.equalized(factors), factors
    except NoLayer:
        kept: dict[equalization.Group, FloatArray] = {}
        found = job
        for group, factor in factors.items():
            with contextlib.suppress(NoLayer):
                found, kept = job.equalized({**kept, group: factor}), {**kept, group: factor}
        return found, kept


def _divided(
    statistics: Mapping[str, Statistics], factors: Mapping[equalization.Group, FloatArray]
) -> dict[str, Statistics]:
    """Return the statistics of the tensors of the equalized network."""
    of = {name: factor for group, factor in factors.items() for name in group.tensors}
    return {name: seen.divided(of[name]) if name in of else seen for name, seen in statistics.items()}


def _may_fold_offset(layer: Layer, read: ir.Value, policy: Policy) -> bool:
    if not layer.can_fold_offset or policy.offset_folding == "none":
        return False
    if policy.offset_folding == "all":
        return True
    return not layer.padded and (
        policy.offset_folding == "unpadded" or equalization.in_pointwise_kernel(read)
    )


def rounded(
    job: Job, params: Mapping[str, QuantParams], statistics: Mapping[str, Statistics]
) -> list[QuantizedLayer]:
    """Return all layers with weights rounded to nearest."""
    return [
        rounding.round_nearest(
            layer,
            params[layer.tensor],
            statistics[layer.tensor],
            per_channel=job.policy.per_channel_weights and layer.scales_per_channel,
        )
        for layer in job.layers
    ]


def predicted(
    job: Job, params: Mapping[str, QuantParams], statistics: Mapping[str, Statistics]
) -> dict[str, float]:
    """Return each layer's predicted noise over its own output's power, by node name."""
    return {
        layer.node: qparams.predicted_noise(
            layer,
            params[layer.tensor],
            statistics[layer.tensor],
            per_channel=job.policy.per_channel_weights,
        )
        for layer in job.layers
    }


def macs_of(layer: Layer) -> float:
    """Return what a layer in float costs where no device is named."""
    return layer.macs
