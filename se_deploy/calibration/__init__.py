"""Calibration: run samples, collect statistics of inner tensors, choose the range that each is clipped to."""

from __future__ import annotations

from se_deploy.calibration.observation import frozen_batch, map_batches, observe, with_outputs
from se_deploy.calibration.ranges import LEVELS, METHODS, ClipError, choose_ranges
from se_deploy.calibration.statistics import BINS, POSITIONS, TAIL_POSITIONS, Statistics, Tails, measure
from se_deploy.schema.common import Method

__all__ = [
    "BINS", "LEVELS", "METHODS", "POSITIONS", "TAIL_POSITIONS", "ClipError", "Method", "Statistics", "Tails",
    "choose_ranges", "frozen_batch", "map_batches", "measure", "observe", "with_outputs",
]  # fmt: skip
