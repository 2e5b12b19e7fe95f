"""The JSON files that are written beside the results and read again later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from se_deploy.errors import counted
from se_deploy.schema.common import Block, Count, Dims, Method, Plan, Precision
from se_deploy.schema.input_spec import InputSpec

LARGEST_SCALE = 65_504.0
"""The largest finite FP16 number: an FP16 graph holds its scales in FP16."""

SMALLEST_SCALE = 2.0**-24
"""The smallest FP16 number above 0."""

LARGEST_FLOAT = 3.4028235e38
"""The largest finite FP32 number: bounds are what refuses NaN and infinity."""

LARGEST_HELD = 4 * 128 * LARGEST_SCALE
"""More than an INT8 tensor with an FP16 scale reaches, on either side of an offset."""

Finite = Annotated[float, Meta(ge=-LARGEST_FLOAT, le=LARGEST_FLOAT)]
Held = Annotated[float, Meta(ge=-LARGEST_HELD, le=LARGEST_HELD)]
Scale = Annotated[float, Meta(gt=0, le=LARGEST_SCALE)]
HeldScale = Annotated[float, Meta(ge=SMALLEST_SCALE, le=LARGEST_SCALE)]


class ShapeRange(Struct, frozen=True):
    """What one input's shape may be: smallest, the one to tune for, largest."""

    min: Dims
    opt: Dims
    max: Dims


class EngineFeatures(Struct, frozen=True, kw_only=True):
    """What an engine was built with besides its precision; libraries by name and SHA-256."""

    tf32: bool = False
    optimization_level: Count | None = None
    version_compatible: bool = False
    hardware_compatibility: str | None = None
    sparsity: bool = False
    refit: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False
    dla_core: Count | None = None
    io_formats: Mapping[str, str] = {}
    plugins: Mapping[str, str] = {}
    best_of: Count = 1


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
    features: EngineFeatures | None = None
    more_shapes: tuple[Mapping[str, ShapeRange], ...] = ()  # of further optimization profiles
    own_sha256: str | None = None  # of all other keys, as JSON with sorted keys and no blanks


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


class CalibratedBeside(Struct, frozen=True, kw_only=True):
    """A tensor that operators other than layers read quantized, for the sake of a layer's input."""

    tensor: str
    scale: HeldScale
    readers: tuple[str, ...]


class CalibratedTensor(Struct, frozen=True, kw_only=True):
    """One tensor: q = clip(round(((x - offset) / divisor) / scale), -128, 127), per channel where listed."""

    scale: HeldScale
    low: Held
    high: Held
    offset: tuple[Held, ...] | None
    divisor: tuple[Scale, ...] | None
    residual: bool
    mean: tuple[Held, ...]
    variance: tuple[Annotated[float, Meta(ge=0, le=LARGEST_HELD**2)], ...]
    reason: str | None = None  # why the scale does not come from the data
    beside: tuple[CalibratedBeside, ...] = ()

    def __post_init__(self) -> None:
        """Check that the range is none reversed, and what is listed has a value for each channel and may be.

        Raises: ValueError.
        """
        if self.low > self.high:
            raise ValueError(f"its low, {self.low:g}, is above its high, {self.high:g}")
        if self.residual and (self.offset is not None or self.divisor is not None):
            raise ValueError(
                "it is residual, and has an offset or a divisor, which an Add would not take back"
            )
        channels = len(self.mean)
        for name in ("variance", "offset", "divisor"):
            values = getattr(self, name)
            if values is not None and len(values) != channels:
                raise ValueError(
                    f"its {name} has {counted(len(values), 'value')} for {counted(channels, 'channel')}"
                )


class FoldedFactors(Struct, frozen=True, kw_only=True):
    """What each channel of these tensors is divided by, along `axis`, in the weights around them."""

    tensors: tuple[str, ...]
    axis: Count
    divisor: tuple[Scale, ...]


class CalibrationCache(
    Struct, frozen=True, kw_only=True, tag_field="schema", tag="se-deploy/calibration-cache/1"
):
    """Scales that a person can read, stamped with what they are for; `noise` per layer alone in INT8."""

    stamp: Stamp
    method: Method  # the one that was chosen
    noise: Mapping[str, Annotated[float, Meta(ge=0, le=LARGEST_FLOAT)]]
    tensors: Mapping[str, CalibratedTensor]
    float_tensors: Mapping[str, str] = msgspec.field(default_factory=dict)  # that no scale serves, and why
    folded: tuple[FoldedFactors, ...] = ()  # before the scales of the tensors above apply


class RewriteChoices(Struct, frozen=True, kw_only=True, tag_field="schema", tag="se-deploy/rewrites/1"):
    """Rewrites to apply again: pairs of a rewrite and the tensor that it is about."""

    choices: tuple[tuple[str, str], ...]
