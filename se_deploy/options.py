"""What a user may ask of a step, in groups that several steps share; every field has a default that works."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from msgspec.structs import replace

from se_deploy import files
from se_deploy.errors import BadInput, counted
from se_deploy.schema import decode, input_spec
from se_deploy.schema.common import Method, OutputKind
from se_deploy.schema.input_spec import Interpolation, Layout, Resize
from se_deploy.signature import DeclaredInput, Feeding
from se_deploy.targets import Target, resolve_target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from se_deploy.schema.files import ShapeRange
    from se_deploy.schema.input_spec import InputSpec

Precision = Literal["fp32", "bf16", "fp16", "int8"]
FloatType = Literal["fp32", "fp16"]
DeviceChoice = Literal["cpu", "cuda"]
HardwareCompatibility = Literal["ampere-plus", "same-compute-capability"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
OUTPUT_KINDS: tuple[OutputKind, ...] = get_args(OutputKind)
FLOAT_TYPES: tuple[FloatType, ...] = get_args(FloatType)
DEVICES: tuple[DeviceChoice, ...] = get_args(DeviceChoice)
RESIZES: tuple[Resize, ...] = get_args(Resize)
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
METHODS: tuple[Method, ...] = get_args(Method)
COMPATIBILITIES: tuple[HardwareCompatibility, ...] = get_args(HardwareCompatibility)

DEFAULT_OPSET = 20
SEARCH_PLANS = 60
"""How many plans a search for rewrites may ask for: the graph as given, each form of a block (about ten),
mixtures of them, and each rewrite at each group of equal sites. The README's figures are made with it; a plan
takes one to five seconds. A budget in plans, not in seconds, makes two searches choose alike."""

CLIENT_PORT = 10001
"""Where the first node of a cluster lets in sweeps of machines that are no node: Ray's own default."""

ADVICE_SAMPLES = 1024
"""How many samples `inspect` looks at by default: half of them fit a block of some hundred hidden units."""


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """What replaces single fields of the network's own input spec."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: Resize | None = None
    crop: float | None = None
    labels: Path | None = None
    size: tuple[int, ...] | None = None  # (C, H, W), or (C, L) and (C, D, H, W) where it is no image
    interpolation: Interpolation | None = None
    inputs: tuple[DeclaredInput, ...] = ()  # what settles the sizes of a file's inputs
    layout: Layout | None = None  # of a file's image; None: read off its graph

    def applied(self, spec: InputSpec | None) -> InputSpec | None:
        """Return `spec` with the fields that are set; None where nothing is known. Raises: BadInput."""
        if spec is None:
            if self.size is None or len(self.size) != 3:  # noqa: PLR2004 - (C, H, W)
                return None
            spec = input_spec.resized(None, self.size)
        elif self.size is not None and len(self.size) == len(spec.shape) and self.size != spec.shape:
            spec = input_spec.resized(spec, self.size)
        for what, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != spec.channels:
                raise BadInput(
                    f"--{what} has {counted(len(values), 'value')} for {counted(spec.channels, 'channel')}",
                    hint=f"give {counted(spec.channels, 'number')}, joined by commas",
                )
        if spec.is_frames and (self.mean is not None or self.std is not None):
            flag = "--mean" if self.mean is not None else "--std"
            raise BadInput(
                f"'{spec.name}' takes uint8 frames, which the graph normalizes itself: {flag} has no use",
                hint=f"leave {flag} out",
            )
        if self.std is not None and not min(self.std) > 0:
            raise BadInput(f"--std {min(self.std):g} is not above 0", hint="leave it out where it is 1")
        if self.crop is not None or self.resize is not None:
            spec = replace(spec, resize_size=None)  # the flags decide what is resized to
        return replace(
            spec,
            mean=self.mean or spec.mean,
            std=self.std or spec.std,
            resize=self.resize or spec.resize,
            interpolation=self.interpolation or spec.interpolation,
            layout=self.layout or spec.layout,
            antialias=spec.antialias or self.interpolation is not None,  # Pillow's filters always do
            crop=self.crop or spec.crop,
            labels=read_labels(self.labels) if self.labels else spec.labels,
        )


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """How a network specification becomes an ONNX graph."""

    checkpoint: Path | None = None
    model_args: Mapping[str, object] = field(default_factory=dict)
    pretrained: bool = False
    input_size: tuple[int, ...] | None = None
    feeding: Feeding = field(default_factory=Feeding)  # where no image size says it
    opset: int | None = None  # None: DEFAULT_OPSET, and that of an ONNX file as it is
    batch: int | None = None  # None: dynamic
    free_batch: bool = False  # dynamic was asked for: an ONNX file with a frozen batch is refused
    seed: int = 0
    image: ImageOptions = field(default_factory=ImageOptions)
    bake_preprocessing: bool = False  # into the graph, which then takes uint8 frames (N, H, W, C)
    kinds: Mapping[str, OutputKind] = field(default_factory=dict)  # of outputs, where the guess is wrong


@dataclass(frozen=True, slots=True)
class RewriteOptions:
    """Which exact rewrites may be tried, and for how long."""

    names: tuple[str, ...] | None = None  # None: the ones that are safe for the target; (): none
    search_plans: int = SEARCH_PLANS
    search_seconds: float | None = None
    replay: Path | None = None  # choices that an earlier search saved, applied without a search


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """Whose compiler the graph is for, the devices that it builds for, and what may be rewritten for them."""

    runtime: str = "auto"  # a backend's name, or auto
    targets: tuple[Target, ...] = ()  # (): the compiler's own choice
    rewrites: RewriteOptions = field(default_factory=RewriteOptions)
    sizes: Mapping[str, tuple[int, ...]] = field(
        default_factory=dict
    )  # of inputs, for what a graph leaves free


TargetLike = TargetOptions | Target | str
"""What a verb takes for its target: "orin-nano", "sm86", a Target, or all that can be said of it."""


def target_options(given: TargetLike | None) -> TargetOptions:
    """Return what a user gave for a target as options. Raises: BadInput for an unknown name."""
    if given is None:
        return TargetOptions()
    if isinstance(given, TargetOptions):
        return given
    return TargetOptions(targets=(given if isinstance(given, Target) else resolve_target(given),))


@dataclass(frozen=True, slots=True)
class EngineFeatures:
    """What an engine may be besides its precision; docs/engine_options.md says which runtime can do what."""

    tf32: bool = False  # FP32 layers may round what they read to TF32
    optimization_level: int | None = None  # 0 to 5; None: the compiler's own
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility | None = None
    sparsity: bool = False
    refit: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False
    dla_core: int | None = None
    io_formats: Mapping[str, str] = field(default_factory=dict)  # by tensor: TensorRT's name of its format
    plugins: tuple[Path, ...] = ()
    best_of: int = 1  # builds, of which the fastest on the device is kept


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is built; every field has a default that works."""

    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)  # by input name; the rest is derived
    workspace_bytes: int | None = None
    timing_cache: Path | None = None  # read and written by full TensorRT; TensorRT-RTX times nothing
    more_shapes: tuple[Mapping[str, ShapeRange], ...] = ()  # further optimization profiles, each as `shapes`
    io: FloatType = "fp32"  # of the float inputs and outputs of a network that is lowered
    features: EngineFeatures = field(default_factory=EngineFeatures)


@dataclass(frozen=True, slots=True)
class HostOptions:
    """How PyTorch and ONNX Runtime run here; an engine runs on its GPU."""

    threads: int = 0  # 0: the runtime's own choice
    device: DeviceChoice = "cpu"
    plugins: tuple[Path, ...] = ()  # shared libraries with operators that an engine has
    cuda_graph: bool | None = None  # an engine's timed calls replay a CUDA graph; None: where that works


RUN_DURATION_S = 1.0
"""Seconds that `run` times an artifact where nothing is said: at trtexec's three seconds four of them take
24 s of two cores' time, much of a small network's run; the rule of stability judges either alike."""


@dataclass(frozen=True, slots=True)
class TimingOptions:
    """How long an artifact is timed; the defaults are trtexec's, so that figures can be compared."""

    warmup_ms: float = 200
    duration_s: float = 3
    iterations: int = 10  # at least
    streams: int = 1  # sessions side by side, for the throughput of a device that one does not fill
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by input: what the files leave free


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What `run` does besides its calibration: how far it lowers, for what, and how it measures."""

    precision: Precision = "int8"  # the lowest; INT8 builds an FP16 engine too, for comparison
    data: Path | None = None  # what parity is measured on; None: the calibration data, with a warning
    target: TargetOptions = field(default_factory=TargetOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    host: HostOptions = field(default_factory=HostOptions)
    timing: TimingOptions = TimingOptions(duration_s=RUN_DURATION_S)
    verify: bool = True  # compare what is written with what was given

    def __post_init__(self) -> None:
        """Raises: BadInput for BF16, which has no place between FP16 and INT8."""
        if self.precision == "bf16":
            raise BadInput(
                "one run goes from FP32 to FP16 and INT8, and not to BF16",
                hint="export the network, then `se-deploy build-engine --bf16`",
            )


@dataclass(frozen=True, slots=True)
class Limits:
    """What replaces single limits of a tolerance preset; per-output limits by output name."""

    preset: Precision | None = None  # None: by the candidate's precision
    atol: tuple[tuple[str, float], ...] = ()  # (output name or "" for all, value)
    rtol: tuple[tuple[str, float], ...] = ()
    min_cosine: float | None = None
    min_top1: float | None = None
    min_iou: float | None = None

    def __post_init__(self) -> None:
        """Raises: BadInput for a limit that nothing, or everything, would keep by mistake."""
        errors = [("atol", *one) for one in self.atol] + [("rtol", *one) for one in self.rtol]
        for key, output, value in errors:
            if not value >= 0:
                of = f" of '{output}'" if output else ""
                raise BadInput(f"{key}{of} is {value:g}, and an error is 0 or more", hint="write it as 1e-3")
        shares = ("min_cosine", self.min_cosine), ("min_top1", self.min_top1), ("min_iou", self.min_iou)
        for key, floor in shares:
            if floor is not None and not abs(floor) <= 1:
                raise BadInput(
                    f"{key} is {floor:g}, and nothing is above 1", hint="write a share, as in 0.99 for 99 %"
                )

    def without_answers(self) -> Limits:
        """Return these limits with no floor on agreement, nor on an IoU that is not limited here."""
        return dataclasses.replace(self, min_top1=0.0, min_iou=self.min_iou or 0.0)


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """Which of the samples in a folder or file are used."""

    limit: int | None = None  # None: all
    skip_unreadable: bool = False  # counted in a warning instead of an error
    seed: int = 0


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """What INT8 is calibrated on, and how far it may go."""

    data: Path | None = None
    samples: int | None = None
    method: Method | None = None  # None: the best of them
    cache: Path | None = None
    exclude_nodes: str | None = None  # regular expression over node names
    skip_unreadable: bool = False
    allow_random: bool = False
    policy: str | None = None  # None: the target's
    min_sqnr_db: float | None = None
    max_drop_points: float | None = None
    keep_fraction: float | None = None  # of the multiply-accumulates, left in FP16
    reconstruct_s: float | None = None  # to spend on block-wise reconstruction; None: none
    seed: int = 0


def read_labels(path: Path) -> tuple[str, ...]:
    """Read class names: a JSON list, or one name a line. Raises: BadInput."""
    text = files.read_text(path)
    if path.suffix == ".json":
        hint = "write the class names as a JSON list"
        return decode(
            text, tuple[str, ...], what=f"'{path}', a list of class names", error=BadInput, hint=hint
        )
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise BadInput(f"'{path}' names no class", hint="write one class name a line, or leave --labels out")
    return names
