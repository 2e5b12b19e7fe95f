"""Mixed precision with a budget: how many layers must stay in float to reach what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from se_deploy.quantization.judge import Judge, Judgement
    from se_deploy.quantization.layers import Layer
    from se_deploy.quantization.qdq import QuantizedLayer

_POINTS = 7  # of the curve


@dataclass(frozen=True, slots=True)
class Goal:
    """What the result must reach on the samples held back; None: not asked."""

    min_sqnr_db: float | None = None  # of the worst output
    max_drop: float | None = None  # of top-1 accuracy, in points

    @property
    def asked(self) -> bool:
        """Whether there is anything to reach."""
        return self.min_sqnr_db is not None or self.max_drop is not None

    def reached(self, found: Judgement, exact: Judgement) -> bool:
        """Tell whether a judgement is good enough. Raises: BadInput for a drop without labels."""
        if self.min_sqnr_db is not None and min(found.sqnr_db().values()) < self.min_sqnr_db:
            return False
        if self.max_drop is None:
            return True
        if found.accuracy is None or exact.accuracy is None:
            raise BadInput(
                "--max-drop needs labels, and the calibration data has none",
                hint="give class folders, or ask for --min-sqnr",
            )
        return 100 * (exact.accuracy - found.accuracy) <= self.max_drop


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the curve of accuracy against cost."""

    kept: int  # layers in float
    macs_int8_fraction: float
    added_ms: float  # per image, what those layers take longer in FP16, estimated by a roofline
    sqnr_db: float  # of the worst output
    accuracy: float | None


def fewest(
    planned: Sequence[QuantizedLayer], ranked: Sequence[Layer], judge: Judge, goal: Goal
) -> int | None:
    """Find how many of `ranked`, from its front, must leave INT8 so that `goal` is reached; None: no number.

    By bisection: leaving more in float is taken to do no harm.
    """
    exact = judge.exact()

    def good(count: int) -> bool:
        return goal.reached(judge.layers(without(planned, ranked[:count])), exact)

    low, high = 0, len(ranked)
    if not good(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle + 1, high)
    return high


def curve(
    planned: Sequence[QuantizedLayer],
    ranked: Sequence[Layer],
    judge: Judge,
    total_macs: int,
    cost: Callable[[Layer], float],
) -> tuple[Point, ...]:
    """Give accuracy against cost for a few numbers of layers left in float, none first and all last."""
    points = []
    for count in sorted({round(n * len(ranked) / (_POINTS - 1)) for n in range(_POINTS)}):
        found = judge.layers(without(planned, ranked[:count]))
        inside = sum(layer.macs for layer in ranked[count:])
        points.append(
            Point(
                kept=count,
                macs_int8_fraction=inside / max(1, total_macs),
                added_ms=sum(cost(layer) for layer in ranked[:count]),
                sqnr_db=min(found.sqnr_db().values()),
                accuracy=found.accuracy,
            )
        )
    return tuple(points)


def without(planned: Sequence[QuantizedLayer], spared: Sequence[Layer]) -> list[QuantizedLayer]:
    """Leave these layers out of the plan."""
    names = {layer.node for layer in spared}
    return [layer for layer in planned if layer.node not in names]
