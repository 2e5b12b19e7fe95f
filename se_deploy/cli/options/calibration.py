"""INT8: what it is calibrated on, and which layers take part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from se_deploy.cli.options.data import seed, skip_unreadable
from se_deploy.cli.parameters import group, optional, switch
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_PATH, OUT_FILE, Number, NumberRange, Pattern, PolicyName, Share
from se_deploy.options import METHODS, CalibrationOptions

if TYPE_CHECKING:
    from se_deploy.cli.parameters import Given

_calib_data = optional(
    "--calib-data", IN_PATH, "Samples to calibrate on: images, .npy/.npz, WAV files, folders of frames, ..."
)
_calib_samples = optional("--calib-samples", click.IntRange(min=1), "Largest number of them to use.")
_calib_method = optional(
    "--calib-method",
    click.Choice(METHODS),
    "How ranges are clipped; default: the best on samples held back.",
)
_calib_cache = optional("--calib-cache", OUT_FILE, "Ranges as JSON, reused where everything matches.")
_exclude_nodes = optional("--exclude-nodes", Pattern(), "Keep matching nodes out of INT8.")
_allow_random = switch("--allow-random-calibration", "Without data, calibrate on noise; a warning says so.")
_policy = optional("--policy", PolicyName(), "Named placement of Q/DQ nodes; default: the target's.")
_min_sqnr = optional("--min-sqnr", Number(), "Keep layers in FP16, cheapest first, to reach this many dB.")
_max_drop = optional(
    "--max-drop",
    NumberRange(min=0),
    "Keep layers in FP16 until top-1 drops by at most this many points.",
    metavar="POINTS",
)
_keep = optional("--keep", Share(), "Share of the multiply-accumulates to keep in FP16, as 10%.")

_reconstruct = optional(
    "--reconstruct",
    NumberRange(min=0, min_open=True),
    "Seconds to train roundings in, block by block; needs PyTorch.",
    metavar="SECONDS",
)


def _calibration(given: Given) -> CalibrationOptions:
    return CalibrationOptions(
        data=_calib_data.of(given),
        samples=_calib_samples.of(given),
        method=_calib_method.of(given),
        cache=_calib_cache.of(given),
        exclude_nodes=_exclude_nodes.of(given),
        skip_unreadable=skip_unreadable.of(given),
        allow_random=_allow_random.of(given),
        policy=_policy.of(given),
        min_sqnr_db=_min_sqnr.of(given),
        max_drop_points=_max_drop.of(given),
        keep_fraction=_keep.of(given),
        reconstruct_s=_reconstruct.of(given),
        seed=seed.of(given),
    )


calibration = group(
    "calibration",
    _calibration,
    _calib_data,
    _calib_samples,
    _calib_method,
    _calib_cache,
    _exclude_nodes,
    skip_unreadable,
    _allow_random,
    _policy,
    _min_sqnr,
    _max_drop,
    _keep,
    _reconstruct,
    seed,
    section=Section.CALIBRATION,
)
