"""Which layers are worth their float cost: each alone in INT8, then the most noise for its cost first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.protocols import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from se_deploy.protocols import Progress
    from se_deploy.quantization.judge import Judge
    from se_deploy.quantization.layers import Layer
    from se_deploy.quantization.qdq import QuantizedLayer


def measure(
    planned: Sequence[QuantizedLayer], judge: Judge, *, progress: Progress = silent
) -> dict[str, float]:
    """Give the relative noise at the outputs with each layer alone in INT8, by node name."""
    noise = {}
    for i, layer in enumerate(planned):
        noise[layer.node] = judge.layers([layer]).total_noise
        progress("sensitivity", i + 1, len(planned))
    return noise


def order(layers: Sequence[Layer], noise: Mapping[str, float], cost: Callable[[Layer], float]) -> list[Layer]:
    """Sort by noise over what leaving a layer in float costs, the best bargain first."""
    return sorted(layers, key=lambda layer: noise[layer.node] / max(1e-12, cost(layer)), reverse=True)


def within(ranked: Sequence[Layer], budget_macs: float) -> list[Layer]:
    """Take layers in order as long as they fit into the budget; what does not fit is passed over."""
    taken: list[Layer] = []
    spent = 0
    for layer in ranked:
        if spent + layer.macs <= budget_macs:
            taken.append(layer)
            spent += layer.macs
    return taken
