"""timm's and torchvision's networks, each with the image transform that its weights were evaluated with.

Where no weights are loaded, the transform is still that of the network's default weights.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from se_deploy.errors import BadInput, BadModel, near_misses, same_letters
from se_deploy.frontend import detectors
from se_deploy.schema.input_spec import InputSpec, per_channel
from se_deploy.signature import DeclaredInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from se_deploy.schema.input_spec import Interpolation

INPUT_NAME = "input"
_NEAR_MISSES = 5

# timm's words for "resize, then crop" and ours.
_CROP_MODES = {"center": "shortest", "squash": "squash", "border": "longest"}
# torchvision's names of Pillow's filters; on images its two "nearest" are one.
_TORCHVISION_FILTERS = {"nearest-exact": "nearest"}
_SEGMENTATION_SIDE = 520  # what every segmentation preset of torchvision resizes to


@dataclass(frozen=True, slots=True)
class Built:
    """A module and what it is fed."""

    module: nn.Module
    image: InputSpec | None  # None where it is fed no single images, or nobody says how
    warnings: tuple[str, ...] = ()
    declared: DeclaredInput | None = None  # where it leaves more sizes free than the batch
    size: tuple[int, ...] = ()  # behind the batch, where `declared` says that others do as well
    as_function: Callable[[nn.Module], nn.Module] | None = None  # of tensors; None: it is one already


def _near(name: str, names: Sequence[str]) -> str:
    """Return the names that `name` is part of or nearly is, as a hint; else ""."""
    word = name.lower()
    same = [one for one in names if same_letters(word, one)]
    near = same or [one for one in names if word in one] or near_misses(word, names, _NEAR_MISSES)
    return f"did you mean {', '.join(near[:_NEAR_MISSES])}?" if near else ""


def from_timm(
    name: str, args: dict[str, Any], *, pretrained: bool, input_size: tuple[int, ...] | None
) -> Built:
    """Build a network of timm. Raises: BadModel for an unknown name, BadInput for its arguments."""
    import timm  # noqa: PLC0415 - an optional extra
    from timm.data import resolve_model_data_config  # noqa: PLC0415
    from timm.layers import set_exportable  # noqa: PLC0415

    if not timm.is_model(name):
        raise BadModel(
            f"timm has no model '{name}'",
            hint=_near(name, timm.list_models()) or "`timm.list_models()` lists the names",
        )
    if input_size is not None:
        args.setdefault("in_chans", input_size[0])
    with set_exportable(True), constructor(f"timm:{name}"):
        module = timm.create_model(name, pretrained=pretrained, **args)
    resize = getattr(module, "set_input_size", None)
    if input_size is not None and callable(resize):
        resize(img_size=input_size[1:])
    return Built(module, timm_spec(resolve_model_data_config(module), input_size))


def timm_spec(config: Mapping[str, Any], input_size: tuple[int, ...] | None = None) -> InputSpec:
    """Return what `timm.data.create_transform(**config)` does for evaluation.

    `config` is what `timm.data.resolve_data_config` returns; `input_size` (C, H, W) replaces its own.
    """
    channels, height, width = input_size or config["input_size"]
    crop = config["crop_pct"]
    mode = config["crop_mode"]
    resized = (math.floor(height / crop), math.floor(width / crop))
    # A square "center" is torchvision's Resize, which rounds down; anything else timm's own, which does not.
    own = mode == "border" or (mode == "center" and resized[0] != resized[1])
    return InputSpec(
        name=INPUT_NAME,
        channels=channels,
        height=height,
        width=width,
        mean=per_channel(config["mean"], channels),
        std=per_channel(config["std"], channels),
        resize=cast("Any", _CROP_MODES[mode]),
        crop=crop,
        interpolation=config["interpolation"],
        rounding="nearest" if own else "down",
    )


def from_torchvision(
    name: str, args: dict[str, Any], *, pretrained: bool, input_size: tuple[int, ...] | None
) -> Built:
    """Build a network of torchvision. Raises: BadModel for an unknown name, BadInput for its arguments."""
    from torchvision import models as zoo  # noqa: PLC0415 - an optional extra

    if name not in zoo.list_models():
        raise BadModel(
            f"torchvision has no model '{name}'",
            hint=_near(name, zoo.list_models()) or "`torchvision.models.list_models()` lists the names",
        )
    if not pretrained and "weights_backbone" in inspect.signature(zoo.get_model_builder(name)).parameters:
        args.setdefault("weights_backbone", None)  # else the backbone's weights are downloaded all the same
    nms = _nms(name, args)
    with constructor(f"torchvision:{name}"):
        module = zoo.get_model(name, weights="DEFAULT" if pretrained else None, **args)
    transform = zoo.get_model_weights(name).DEFAULT.transforms()
    image = torchvision_spec(transform, module)
    note = _limits(f"torchvision:{name}", transform, module, image)
    if input_size is not None and image is not None:
        note = None  # the size is the user's own choice
    notes = (note,) if note else ()
    if image is None or not detectors.is_detector(module):
        return Built(module, image, notes)
    side = (image.height, image.width) if input_size is None else (input_size[-2], input_size[-1])
    with_nms = detectors.needs_nms(module) if nms is None else nms
    return Built(
        module,
        image,
        notes,
        declared=DeclaredInput(INPUT_NAME, (1, image.channels, *side)) if with_nms else None,
        size=(image.channels, *side),
        as_function=lambda loaded: detectors.of_tensors(loaded, f"torchvision:{name}", side, nms=with_nms),
    )


def _nms(name: str, args: dict[str, Any]) -> bool | None:
    """Take `nms` out of a detector's arguments; None where it is not given. Raises: BadInput."""
    from torchvision.models import detection  # noqa: PLC0415 - an optional extra

    if "nms" not in args or not hasattr(detection, name):
        return None
    given = args.pop("nms")
    if not isinstance(given, bool):
        raise BadInput(f"nms is True or False, not '{given}'", hint="write it as --model-arg nms=True")
    return given


def torchvision_spec(transform: Any, module: nn.Module | None = None) -> InputSpec | None:  # noqa: ANN401 - torchvision has no common type
    """Return what `weights.transforms()` of torchvision does to a Pillow image; None where it takes none.

    A detection network normalizes and resizes inside itself; the size that it resizes to is read from
    `module`, so that it finds nothing left to do.
    """
    kind = type(transform).__name__
    if kind == "ImageClassification":
        (size,), (resized,) = transform.crop_size, transform.resize_size
    elif kind == "SemanticSegmentation":
        (size,) = (resized,) = transform.resize_size or [_SEGMENTATION_SIDE]
    elif kind == "ObjectDetection" and module is not None:
        return _detection_spec(module)
    else:
        return None
    mode = transform.interpolation.value
    return InputSpec(
        name=INPUT_NAME,
        channels=3,
        height=size,
        width=size,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        crop=size / resized,
        interpolation=cast("Interpolation", _TORCHVISION_FILTERS.get(mode, mode)),
        # The fraction need not give the integer back: floor(240 / (240 / 255)) may be 254.
        resize_size=None if math.floor(size / (size / resized)) == resized else (resized, resized),
    )


def _detection_spec(module: nn.Module) -> InputSpec:
    """Return what a detection network's own `transform` does before it normalizes."""
    inside = cast("Any", module).transform
    width, height = inside.fixed_size or (inside.min_size[-1],) * 2
    return InputSpec(
        name=INPUT_NAME,
        channels=3,
        height=height,
        width=width,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        resize="squash",
        interpolation="bilinear",
        antialias=False,
    )


def _limits(spec: str, transform: Any, module: nn.Module, image: InputSpec | None) -> str | None:  # noqa: ANN401 - as above
    """Return in which way a graph of one size cannot do what torchvision does; None where it can."""
    kind = type(transform).__name__
    if image is None:
        return (
            f"'{spec}' has no transform for single images (torchvision's is {kind}), so the file does not "
            "say how its input is prepared: give prepared arrays"
        )
    takes = f"this graph takes {image.height}x{image.width} (--input-size CxHxW chooses another size)"
    if kind == "SemanticSegmentation":
        return (
            f"torchvision feeds '{spec}' whole images, the shorter side {image.height}: of such an image "
            f"{takes}, its centre"
        )
    if kind == "ObjectDetection" and cast("Any", module).transform.fixed_size is None:
        return f"torchvision feeds '{spec}' images of any size and aspect: squeezed, {takes}"
    return None


@contextlib.contextmanager
def constructor(spec: str) -> Iterator[None]:
    """Name the network where its constructor refuses an argument."""
    try:
        yield
    except (TypeError, ValueError) as e:
        raise BadInput(f"'{spec}' does not take these arguments: {e}", hint="check --model-arg") from e
