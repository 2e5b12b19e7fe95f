"""Ranges of a network's inner tensors: run it, sum up what they hold, choose where to cut."""

from __future__ import annotations

from se_deploy.calibration.ranges import LEVELS, METHODS, ClipError, Method, intervals
from se_deploy.calibration.running import digested, frozen_batch, observe, observed
from se_deploy.calibration.statistics import BINS, POSITIONS, TAIL_POSITIONS, Statistics, measure

__all__ = [
    "BINS", "LEVELS", "METHODS", "POSITIONS", "TAIL_POSITIONS", "ClipError", "Method", "Statistics",
    "digested", "frozen_batch", "intervals", "measure", "observe", "observed",
]  # fmt: skip
