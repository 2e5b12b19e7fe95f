"""Mixed precision: how many layers must stay in float to reach the accuracy asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from se_deploy.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from se_deploy.quantization.evaluator import Evaluation
    from se_deploy.quantization.layers import Layer
    from se_deploy.quantization.qdq import QuantizedLayer

_POINTS = 100  # percentage points of an accuracy of 1
_CURVE_POINTS = 7  # none, all, and five between: each is a run of the samples held back


class Evaluates(Protocol):
    """What evaluates layers in INT8, and the float network."""

    def layers(self, planned: Sequence[QuantizedLayer], /) -> Evaluation:
        """Return the evaluation of the graph with these layers in INT8."""

    def exact(self) -> Evaluation:
        """Return the evaluation of the float network."""


@dataclass(frozen=True, slots=True)
class AccuracyGoal:
    """What the result must reach on the samples held back; None: not asked."""

    min_sqnr_db: float | None = None  # of the worst output
    max_drop: float | None = None  # of top-1 accuracy, in percentage points

    @property
    def asked(self) -> bool:
        """Whether there is anything to reach."""
        return self.min_sqnr_db is not None or self.max_drop is not None

    def reached(self, quantized: Evaluation, exact: Evaluation) -> bool:
        """Whether `quantized` is good enough. Raises: BadInput for a drop without labels."""
        if self.min_sqnr_db is not None and min(quantized.sqnr_db().values()) < self.min_sqnr_db:
            return False
        if self.max_drop is None:
            return True
        if quantized.accuracy is None or exact.accuracy is None:
            raise BadInput(
                "--max-drop needs labels of the network's classes, and the calibration data has none",
                hint="give class folders, or ask for --min-sqnr",
            )
        return _POINTS * (exact.accuracy - quantized.accuracy) <= self.max_drop


@dataclass(frozen=True, slots=True)
class TradeoffPoint:
    """One point of the curve of accuracy against cost."""

    float_layers: int  # how many
    macs_int8_fraction: float
    added_ms: float  # per image, what those layers take longer in FP16, estimated by a roofline
    sqnr_db: float  # of the worst output
    accuracy: float | None


def fewest_float_layers(
    planned: Sequence[QuantizedLayer], ranked: Sequence[Layer], evaluator: Evaluates, goal: AccuracyGoal
) -> int | None:
    """Return how many of `ranked`, from its front, must stay in float for `goal`; None: not even all do.

    By bisection: more layers in float are taken to do no harm.
    """
    exact = evaluator.exact()

    def good(count: int) -> bool:
        return goal.reached(evaluator.layers(without(planned, ranked[:count])), exact)

    low, high = 0, len(ranked)
    if not good(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle + 1, high)
    return high


def tradeoff_curve(
    planned: Sequence[QuantizedLayer],
    ranked: Sequence[Layer],
    evaluator: Evaluates,
    total_macs: int,
    cost: Callable[[Layer], float],
) -> tuple[TradeoffPoint, ...]:
    """Return accuracy against cost for a few numbers of layers left in float, none first and all last."""
    steps = _CURVE_POINTS - 1
    points = []
    for count in sorted({round(n * len(ranked) / steps) for n in range(_CURVE_POINTS)}):
        evaluation = evaluator.layers(without(planned, ranked[:count]))
        inside = sum(layer.macs for layer in ranked[count:])
        points.append(
            TradeoffPoint(
                float_layers=count,
                macs_int8_fraction=inside / max(1, total_macs),
                added_ms=sum(cost(layer) for layer in ranked[:count]),
                sqnr_db=min(evaluation.sqnr_db().values()),
                accuracy=evaluation.accuracy,
            )
        )
    return tuple(points)


def without(planned: Sequence[QuantizedLayer], float_layers: Sequence[Layer]) -> list[QuantizedLayer]:
    """Return the plan less the layers that stay in float."""
    names = {layer.node for layer in float_layers}
    return [layer for layer in planned if layer.node not in names]
