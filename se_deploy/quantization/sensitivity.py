"""Sensitivity analysis: which layers gain the most accuracy for what leaving them in float costs.

Each layer is run alone in INT8; layers are then ranked by the noise that they make over their float cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.protocols import in_turn, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from se_deploy.protocols import Each, Progress
    from se_deploy.quantization.evaluator import Evaluator
    from se_deploy.quantization.layers import Layer
    from se_deploy.quantization.qdq import QuantizedLayer

_NO_COST = 1e-12  # ms or MACs: far below any layer's, so that a layer that costs nothing is ranked first


def measure(
    planned: Sequence[QuantizedLayer],
    evaluator: Evaluator,
    *,
    each: Each = in_turn,
    progress: Progress = silent,
) -> dict[str, float]:
    """Return the relative noise at the outputs with each layer alone in INT8, by node name."""

    def ended(done: int) -> None:
        progress("sensitivity", done, len(planned))

    noise = each(_alone, evaluator, planned, ended)
    return dict(zip((layer.node for layer in planned), noise, strict=True))


def _alone(evaluator: Evaluator, layer: QuantizedLayer) -> float:
    return evaluator.layers([layer]).total_noise


def rank(layers: Sequence[Layer], noise: Mapping[str, float], cost: Callable[[Layer], float]) -> list[Layer]:
    """Return the layers by noise over what leaving one in float costs, the largest quotient first."""
    return sorted(layers, key=lambda layer: noise[layer.node] / max(_NO_COST, cost(layer)), reverse=True)


def within_budget(ranked: Sequence[Layer], budget_macs: float) -> list[Layer]:
    """Return the layers, taken in order, that fit into the budget; one that does not fit is passed over."""
    taken: list[Layer] = []
    spent = 0
    for layer in ranked:
        if spent + layer.macs <= budget_macs:
            taken.append(layer)
            spent += layer.macs
    return taken
