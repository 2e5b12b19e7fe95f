"""The user's data as samples: for a graph by its own inputs, and for a network before it is exported."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import data
from se_deploy.commands import shapes
from se_deploy.errors import BadData
from se_deploy.protocols import TensorSpec
from se_deploy.schema import input_spec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnx_ir as ir

    from se_deploy.options import CalibrationOptions
    from se_deploy.schema.input_spec import InputSpec


def require_data(options: CalibrationOptions) -> None:
    """Raise BadData where INT8 has neither data nor leave to calibrate on noise."""
    if options.data is None and not options.allow_random:
        raise BadData(
            "INT8 needs calibration data, and random data would ruin the answers",
            hint="pass --calib-data: images, .npy/.npz, WAV files, folders of frames, ...",
        )


def calibration_samples(model: ir.Model, options: CalibrationOptions) -> data.Samples:
    """Read the calibration data by the graph's own input spec. Raises: BadData."""
    spec = input_spec.read(model.metadata_props)
    taken = shapes.tensor_specs(model)
    if options.data is None:
        require_data(options)
        return data.random(taken, count=options.samples or 32, seed=options.seed)
    prepared = data.is_prepared(options.data, taken)
    if spec is None and not prepared:
        raise BadData(
            f"the graph does not say how images become its input, so '{options.data}' cannot be used",
            hint=data.how_to_describe(taken),
        )
    return _read(taken if prepared or spec is None else [spec], spec, options.data, options)


def image_samples(spec: InputSpec, options: CalibrationOptions) -> data.Samples | None:
    """Read images as a network takes them that is no graph yet; None where the data is no images.

    Raises: BadData, where nothing is there or an image cannot be read.
    """
    if options.data is None:
        return None
    data.require(options.data, spec)
    if data.is_prepared(options.data, [TensorSpec(spec.name, np.dtype(np.float32), (None, *spec.dims))]):
        return None
    return _read([spec], spec, options.data, options)


def _read(
    inputs: Sequence[InputSpec | TensorSpec], spec: InputSpec | None, path: Path, options: CalibrationOptions
) -> data.Samples:
    samples = data.read(
        path,
        inputs,
        image=spec,
        limit=options.samples,
        skip_unreadable=options.skip_unreadable,
        seed=options.seed,
    )
    return replace(samples, warnings=(*samples.warnings, *data.copy_doubts(samples)))


def range_samples(model: ir.Model, options: CalibrationOptions) -> data.Samples | None:
    """Return the user's samples for FP16's ranges; None where none were named. Raises: BadData."""
    return None if options.data is None else calibration_samples(model, options)
