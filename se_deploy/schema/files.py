"""The JSON files that are written beside the results and read again later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct

from se_deploy.schema.common import Block, Count, Dims, Plan, Precision
from se_deploy.schema.input_spec import InputSpec

LARGEST_SCALE = 65_504.0
"""The largest finite FP16 number: an FP16 graph holds its scales in FP16."""

Scale = Annotated[float, Meta(gt=0, le=LARGEST_SCALE)]


class ShapeRange(Struct, frozen=True):
    """What one input's shape may be: smallest, the one to tune for, largest."""

    min: Dims
    opt: Dims
    max: Dims


class Manifest(Struct, frozen=True, kw_only=True, tag_field="schema", tag="se-deploy/manifest/1"):
    """One engine's provenance; file names are relative to its folder, hashes are SHA-256."""

    engine: str
    engine_sha256: str
    engine_bytes: Count
    onnx: str
    onnx_sha256: str
    precision: Precision  # what its plan runs in
    requested_precision: Precision
    shapes: Mapping[str, ShapeRange]
    runtime: str
    version: str
    targets: tuple[str, ...]
    trtexec: str  # the equivalent command line
    host: Mapping[str, str]
    tool_version: str
    calibration_sha256: str | None = None  # of the samples, in order
    calibration_cache_sha256: str | None = None
    input: InputSpec | None = None
    plan: Plan | None = None
    blocks: tuple[Block, ...] = ()


class BundleInput(
    InputSpec, frozen=True, kw_only=True, omit_defaults=False, tag_field="schema", tag="se-deploy/input/1"
):
    """`input.json` of a bundle: how an image becomes the input of the ONNX file beside it, every field."""

    onnx: str | None


class Stamp(Struct, frozen=True, kw_only=True):
    """What a calibration cache is for; all of it must agree."""

    onnx_sha256: str
    data_sha256: str
    samples: Count
    policy: str
    method: str  # as asked for: "auto" or a method
    options: str  # everything else that the scales depend on
    version: str


class CalibratedTensor(Struct, frozen=True, kw_only=True):
    """One tensor: q = clip(round(((x - offset) / divisor) / scale), -128, 127), per channel where listed."""

    scale: Scale
    low: float
    high: float
    offset: tuple[float, ...] | None
    divisor: tuple[Annotated[float, Meta(gt=0)], ...] | None
    residual: bool
    mean: tuple[float, ...]
    variance: tuple[Annotated[float, Meta(ge=0)], ...]

    def __post_init__(self) -> None:
        """Check that what is listed per channel has one value for each. Raises: ValueError."""
        channels = len(self.mean)
        for name in ("variance", "offset", "divisor"):
            values = getattr(self, name)
            if values is not None and len(values) != channels:
                raise ValueError(f"its {name} has {len(values)} values for {channels} channels")


class CalibrationCache(
    Struct, frozen=True, kw_only=True, tag_field="schema", tag="se-deploy/calibration-cache/1"
):
    """Scales that a person can read, stamped with what they are for; `noise` per layer alone in INT8."""

    stamp: Stamp
    method: str  # the one that was chosen
    noise: Mapping[str, float]
    tensors: Mapping[str, CalibratedTensor]


class RewriteChoices(Struct, frozen=True, kw_only=True, tag_field="schema", tag="se-deploy/rewrites/1"):
    """Rewrites to apply again: pairs of a rewrite and the tensor that it is about."""

    choices: tuple[tuple[str, str], ...]
