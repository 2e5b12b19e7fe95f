"""Plans whose biases are corrected for the layers that are in INT8 in them, and for no others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from se_deploy.quantization import bias_correction
from se_deploy.quantization.job import BIASES, Job, Plan, evenly

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.protocols import Progress
    from se_deploy.quantization.evaluator import Evaluation
    from se_deploy.quantization.qdq import QuantizedLayer


def with_biases(job: Job, plan: Plan, progress: Progress) -> Plan:
    """Return the plan with corrected biases, or the plan itself where that is surely better."""
    corrected = job.evaluated(
        bias_correction.correct(
            job.model,
            plan.layers,
            evenly(job.chosen, BIASES.samples(job.macs), job.block),
            runtime=job.evaluator.runtime,
            fast=job.fast,
            progress=progress,
        )
    )
    return plan if plan.evaluation.surely_better(corrected.evaluation) else corrected


@dataclass(slots=True)
class Remaining:
    """Evaluates what is left of a plan in INT8: a bias corrected for a layer that is gone would be wrong."""

    job: Job
    whole: Plan
    progress: Progress
    known: dict[frozenset[str], Plan] = field(default_factory=dict)  # by the layers in INT8

    def plan(self, planned: Sequence[QuantizedLayer]) -> Plan:
        """Return the plan of some of the layers, its biases corrected anew where others are gone."""
        if len(planned) == len(self.whole.layers):
            return self.whole
        names = frozenset(layer.node for layer in planned)
        if names not in self.known:
            left = self.job.evaluated(list(planned))
            if planned and self.job.options.bias_correction:
                left = with_biases(self.job, left, self.progress)
            self.known[names] = left
        return self.known[names]

    def layers(self, planned: Sequence[QuantizedLayer]) -> Evaluation:
        """Return the evaluation of the plan of some of the layers."""
        return self.plan(planned).evaluation

    def exact(self) -> Evaluation:
        """Return the evaluation of the float network."""
        return self.job.evaluator.exact()
