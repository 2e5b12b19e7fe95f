"""Calibration and evaluation data: whatever form it has on disk, batches by input name come out.

Nothing is held in memory but the batch at hand (IDX and CIFAR, whose images are tiny, keep the
chosen ones), every chosen file is looked at before the first batch is given, and the hash says exactly
which samples were used.
"""

from __future__ import annotations

from se_deploy.data.images import preprocess
from se_deploy.data.labels import doubt
from se_deploy.data.noise import random
from se_deploy.data.plausibility import copy_doubts, held_doubts
from se_deploy.data.prepared import kept
from se_deploy.data.reading import IMAGE_SUFFIXES, how_to_describe, is_prepared, read, require
from se_deploy.data.samples import Samples, Source

__all__ = [
    "IMAGE_SUFFIXES",
    "Samples",
    "Source",
    "copy_doubts",
    "doubt",
    "held_doubts",
    "how_to_describe",
    "is_prepared",
    "kept",
    "preprocess",
    "random",
    "read",
    "require",
]
