"""What a measured output is held to: a preset for each precision, whose limits can be replaced.

A preset saves everyone the question why a fine FP16 engine fails at 1e-5.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy.errors import BadInput

if TYPE_CHECKING:
    from se_deploy.comparison.parity import OutputParity


@dataclass(frozen=True, slots=True)
class Miss:
    """One limit that an output does not keep."""

    measure: str  # "largest error", "1 - cosine", "share of other answers", "1 - IoU", ...
    value: float
    limit: float


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What passes: |error| <= atol + rtol * max|reference|, and the floors on what an output is there for."""

    preset: str
    atol: float
    rtol: float
    min_cosine: float  # of all values; of an embedding for each sample
    min_top1: float  # of logits and labels
    min_top5: float
    min_iou: float  # of masks
    min_box_iou: float  # of boxes; of scores without boxes the share that has a partner
    divergence: float  # relative RMS error of an inner tensor from which it counts as diverged
    by_pixel: bool = False  # whether no single score of a mask may be far off either

    def misses(self, parity: OutputParity) -> tuple[Miss, ...]:
        """Return the limits that are not kept.

        Labels are held to equal answers, boxes to their overlap, masks to their overlap and cosine, all else
        to errors and cosine; a NaN or inf in the candidate keeps no limit.
        """
        return (*self._errors(parity), *self._answers(parity))

    def _errors(self, parity: OutputParity) -> tuple[Miss, ...]:
        found = []
        limit = self.atol + self.rtol * parity.max_abs / parity.max_rel if parity.max_rel else self.atol
        loose = parity.kind == "boxes" or parity.cosine is None
        edges = parity.kind == "mask" and not self.by_pixel  # one turns over at a time
        if not math.isfinite(parity.max_abs) or not (loose or edges or parity.max_abs <= limit):
            found.append(Miss("largest error", parity.max_abs, limit))
        cosine = parity.cosine if parity.worst_cosine is None else parity.worst_cosine
        if not loose and cosine is not None and not cosine >= self.min_cosine:
            found.append(Miss("1 - cosine", 1 - cosine, 1 - self.min_cosine))
        return tuple(found)

    def _answers(self, parity: OutputParity) -> tuple[Miss, ...]:
        floors = [
            ("share of other answers", parity.top1_agreement, self.min_top1),
            ("share of answers outside the top 5", parity.top5_agreement, self.min_top5),
            ("1 - IoU", parity.iou, self.min_box_iou if parity.kind == "boxes" else self.min_iou),
        ]
        if parity.kind == "scores":
            floors.append(("share without a partner", parity.agreement, self.min_box_iou))
        return tuple(
            Miss(measure, 1 - value, 1 - floor)
            for measure, value, floor in floors
            if value is not None and not value >= floor
        )

    def failures(self, parity: OutputParity) -> tuple[str, ...]:
        """Return what does not pass; empty where all does. NaN never passes."""
        return tuple(f"'{parity.name}': {_words(miss, parity)}" for miss in self.misses(parity))


def _words(miss: Miss, parity: OutputParity) -> str:
    floor = 1 - miss.limit
    if miss.measure == "largest error" and not math.isfinite(miss.value):
        return "the reference, or it, holds NaN or inf, which nothing can be compared with"
    if miss.measure == "largest error":
        return f"largest error {miss.value:.3g} is above {miss.limit:.3g}"
    if miss.measure == "1 - cosine":
        of = "cosine" if parity.worst_cosine is None else "cosine of the worst sample"
        return f"{of} {1 - miss.value:.6f} is below {floor:g}"
    what = {
        "share of other answers": "agreement" if parity.kind == "labels" else "top-1 agreement",
        "share of answers outside the top 5": "top-5 agreement",
        "1 - IoU": "IoU of boxes" if parity.kind == "boxes" else "mean IoU",
        "share without a partner": "share of scores with a partner",
    }[miss.measure]
    return f"{what} {1 - miss.value:.2%} < {floor:.2%}"


def _iou_at(agreement: float) -> float:
    """Return the IoU of a class that holds this share of its pixels: each other one is in two unions."""
    return agreement / (2 - agreement)


PRESETS = {
    # The same sums in another order: a few units in the last place of FP32, grown through the layers.
    # Where the five best change, more than a near tie did.
    # A box of 32 pixels that moves by 0.1 has an IoU of 0.99.
    "fp32": Tolerance(
        "fp32", atol=1e-5, rtol=1e-4, min_cosine=0.99999, min_top1=0.995, min_top5=0.999,
        min_iou=_iou_at(0.995), min_box_iou=0.99, divergence=1e-4, by_pixel=True,
    ),
    # FP16 has 11 bits: 5e-4 per operation, some percent of the output's range at the end of a deep network.
    # 0.95 is the strictest overlap that COCO's evaluation asks of a box.
    "fp16": Tolerance(
        "fp16", atol=1e-3, rtol=3e-2, min_cosine=0.999, min_top1=0.99, min_top5=0.999,
        min_iou=_iou_at(0.99), min_box_iou=0.95, divergence=3e-2,
    ),
    # BF16 has 8 bits: FP16's limits times 8; answers that FP16 may change at a near tie change more often.
    "bf16": Tolerance(
        "bf16", atol=8e-3, rtol=0.24, min_cosine=0.99, min_top1=0.97, min_top5=0.99,
        min_iou=_iou_at(0.97), min_box_iou=0.75, divergence=0.24,
    ),
    # INT8 is judged by direction and by answers: single values may be far off.
    # 0.75 is COCO's strict match (AP75), and the mean over boxes that come and go at the score's threshold.
    "int8": Tolerance(
        "int8", atol=math.inf, rtol=0.0, min_cosine=0.98, min_top1=0.97, min_top5=0.99,
        min_iou=_iou_at(0.97), min_box_iou=0.75, divergence=0.3,
    ),
}  # fmt: skip


def tolerance(
    preset: str,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    min_cosine: float | None = None,
    min_top1: float | None = None,
    min_iou: float | None = None,
) -> Tolerance:
    """Return a preset, with any of its limits replaced.

    `min_top1` lowers the floor on the top-5 agreement with it, `min_iou` is that of masks and of boxes.
    Raises: BadInput for an unknown preset.
    """
    if preset not in PRESETS:
        raise BadInput(f"there is no preset '{preset}'", hint=f"use one of {', '.join(PRESETS)}")
    base = PRESETS[preset]
    return dataclasses.replace(
        base,
        atol=base.atol if atol is None else atol,
        rtol=base.rtol if rtol is None else rtol,
        min_cosine=base.min_cosine if min_cosine is None else min_cosine,
        min_top1=base.min_top1 if min_top1 is None else min_top1,
        min_top5=base.min_top5 if min_top1 is None else min(base.min_top5, min_top1),
        min_iou=base.min_iou if min_iou is None else min_iou,
        min_box_iou=base.min_box_iou if min_iou is None else min_iou,
    )
