"""SE-ResNet, SE-ResNeXt and SENet, for ImageNet and for small images, with every placement of the block.

References: J. Hu, L. Shen, G. Sun, arXiv:1709.01507 (SE-ResNet, SE-ResNeXt, SENet-154, the placements);
K. He et al., arXiv:1512.03385 (ResNet, also ResNet-20 and -56 for 32x32 images); S. Xie et al.,
arXiv:1611.05431 (ResNeXt). The ImageNet networks are the ones that the authors' Caffe weights fit, which is
also what timm calls `legacy_se*`: the stride sits in a bottleneck's first convolution, the stem's pool
rounds its size up, and the two-layer blocks have a ReLU before their SE block.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, cast, get_args

from torch import nn

from se_deploy.networks.adaptive import AdaptiveArgs, AdaptiveSE
from se_deploy.networks.blocks import SEArgs, SEFactory, SqueezeExcite, conv_norm, initialize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from typing_extensions import Unpack

Placement = Literal["standard", "pre", "post", "identity", "inner", "per_conv", "none"]
"""Where the block sits: behind the branch, before it, behind the sum and its ReLU, on the shortcut, behind
the 3x3 convolution alone, behind every convolution; "none" is the plain ResNet."""


class _LargeArgs(SEArgs, total=False):
    """The options of the networks for ImageNet: 1000 classes, 3 channels, standard placement, ratio 16."""

    num_classes: int
    in_channels: int
    placement: Placement


class _SmallArgs(SEArgs, total=False):
    """The options of `se_resnet20`."""

    num_classes: int
    in_channels: int
    width: int
    placement: Placement


@dataclass(frozen=True, slots=True)
class _Conv:
    """One convolution of a residual branch; its padding is kernel // 2."""

    outputs: int
    kernel: int
    stride: int = 1
    groups: int = 1


class ResidualBlock(nn.Module):
    """post(relu(branch(x) + shortcut(x))); the SE block is part of whichever the placement says.

    Shapes: x (N, inputs, H, W) -> (N, outputs, H/stride, W/stride).
    """

    def __init__(
        self,
        inputs: int,
        convs: Sequence[_Conv],
        *,
        se: SEFactory,
        placement: Placement,
        shortcut_kernel: int = 1,
        last_act: bool = False,
    ) -> None:
        """`convs` run in order, ReLU between and with `last_act` also behind the last one.

        The shortcut is a convolution where the shape changes, the identity elsewhere.
        """
        super().__init__()
        outputs = convs[-1].outputs
        stride = 1
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if placement == "pre":
            layers["se"] = se(inputs)
        channels = inputs
        for index, conv in enumerate(convs, 1):
            parts = conv_norm(
                str(index), channels, conv.outputs, conv.kernel, stride=conv.stride, groups=conv.groups
            )
            activation = parts.pop(f"act{index}")
            layers.update(parts)
            if placement == "per_conv":
                layers[f"se{index}"] = se(conv.outputs)
            if placement == "inner" and conv.kernel > 1 and "se" not in layers:
                layers["se"] = se(conv.outputs)
            if index < len(convs) or last_act:
                layers[f"act{index}"] = activation
            channels, stride = conv.outputs, stride * conv.stride
        if placement == "standard":
            layers["se"] = se(outputs)
        self.branch = nn.Sequential(layers)

        shortcut: OrderedDict[str, nn.Module] = OrderedDict()
        if stride > 1 or inputs != outputs:
            shortcut = conv_norm("", inputs, outputs, shortcut_kernel, stride=stride, activation=None)
        if placement == "identity":
            shortcut["se"] = se(outputs)
        self.shortcut = nn.Sequential(shortcut) if shortcut else nn.Identity()
        self.act = nn.ReLU()
        self.post = se(outputs) if placement == "post" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on x (N, inputs, H, W)."""
        y: Tensor = self.post(self.act(self.branch(x) + self.shortcut(x)))
        return y


class ResNet(nn.Module):
    """Stem, stages of residual blocks, average over H and W, linear classifier.

    Shapes: x (N, in_channels, H, W) -> logits (N, num_classes).
    """

    def __init__(
        self, stem: nn.Module, stages: Sequence[nn.Module], features: int, num_classes: int, drop: float = 0.0
    ) -> None:
        """`features`: channels that the last stage gives; `drop`: dropout before the classifier."""
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(features, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify x (N, in_channels, H, W): logits (N, num_classes)."""
        x = self.flatten(self.pool(self.stages(self.stem(x))))
        logits: Tensor = self.head(self.drop(x))
        return logits


def small_resnet(
    blocks_per_stage: int,
    *,
    num_classes: int,
    in_channels: int,
    width: int,
    se: SEFactory,
    placement: Placement,
) -> ResNet:
    """Build He et al.'s network for small images: three stages of `width`, 2 and 4 times `width`.

    Shapes: x (N, in_channels, H, W), H and W at least 8 -> logits (N, num_classes).
    """
    check_placement(placement)
    stem = nn.Sequential(conv_norm("1", in_channels, width, 3))
    stages: list[nn.Module] = []
    channels = width
    for stage in range(3):
        blocks: list[nn.Module] = []
        outputs = width << stage
        for index in range(blocks_per_stage):
            stride = 2 if stage > 0 and index == 0 else 1
            convs = (_Conv(outputs, 3, stride), _Conv(outputs, 3))
            blocks.append(ResidualBlock(channels, convs, se=se, placement=placement))
            channels = outputs
        stages.append(nn.Sequential(*blocks))
    return ResNet(stem, stages, channels, num_classes)


def se_resnet20(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    width: int = 16,
    placement: Placement = "standard",
    **se: Unpack[SEArgs],
) -> ResNet:
    """SE-ResNet-20 for 32x32 or 28x28 images; ratio 8 unless given."""
    return small_resnet(
        3,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        se=partial(SqueezeExcite, **_small(se)),
        placement=placement,
    )


def se_resnet56(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    width: int = 16,
    placement: Placement = "standard",
    **se: Unpack[SEArgs],
) -> ResNet:
    """SE-ResNet-56 for 32x32 or 28x28 images; ratio 8 unless given."""
    return small_resnet(
        9,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        se=partial(SqueezeExcite, **_small(se)),
        placement=placement,
    )


def deep_se_resnet20(**options: Unpack[_SmallArgs]) -> ResNet:
    """SE-ResNet-20 with deep excitation: four learned layers (`depth`) in each block in place of two."""
    merged: _SmallArgs = {"depth": 4}
    merged.update(options)
    return se_resnet20(**merged)


def conv_se_resnet20(**options: Unpack[_SmallArgs]) -> ResNet:
    """SE-ResNet-20 with one SE block behind every convolution of its residual branches."""
    merged: _SmallArgs = {"placement": "per_conv"}
    merged.update(options)
    return se_resnet20(**merged)


def adaptive_se_resnet20(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    width: int = 16,
    placement: Placement = "standard",
    **se: Unpack[AdaptiveArgs],
) -> ResNet:
    """SE-ResNet-20 that learns each block's hidden width, at most half its channels unless `ratio` is given.

    `networks.freeze` makes it static; until then it is for training.
    """
    return small_resnet(
        3,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        se=partial(AdaptiveSE, **se),
        placement=placement,
    )


def se_resnet18(**options: Unpack[_LargeArgs]) -> ResNet:
    """SE-ResNet-18: timm's `legacy_seresnet18`."""
    return _imagenet_resnet((2, 2, 2, 2), _basic, options)


def se_resnet34(**options: Unpack[_LargeArgs]) -> ResNet:
    """SE-ResNet-34: timm's `legacy_seresnet34`."""
    return _imagenet_resnet((3, 4, 6, 3), _basic, options)


def se_resnet50(**options: Unpack[_LargeArgs]) -> ResNet:
    """SE-ResNet-50: timm's `legacy_seresnet50`."""
    return _imagenet_resnet((3, 4, 6, 3), _bottleneck, options)


def se_resnet101(**options: Unpack[_LargeArgs]) -> ResNet:
    """SE-ResNet-101: timm's `legacy_seresnet101`."""
    return _imagenet_resnet((3, 4, 23, 3), _bottleneck, options)


def se_resnet152(**options: Unpack[_LargeArgs]) -> ResNet:
    """SE-ResNet-152: timm's `legacy_seresnet152`."""
    return _imagenet_resnet((3, 8, 36, 3), _bottleneck, options)


def se_resnext50_32x4d(**options: Unpack[_LargeArgs]) -> ResNet:
    """SE-ResNeXt-50 with 32 groups of width 4: timm's `legacy_seresnext50_32x4d`."""
    return _imagenet_resnet((3, 4, 6, 3), _resnext, options)


def se_resnext101_32x4d(**options: Unpack[_LargeArgs]) -> ResNet:
    """SE-ResNeXt-101 with 32 groups of width 4: timm's `legacy_seresnext101_32x4d`."""
    return _imagenet_resnet((3, 4, 23, 3), _resnext, options)


def senet154(**options: Unpack[_LargeArgs]) -> ResNet:
    """SENet-154: 64 groups, a stem of three convolutions, 3x3 shortcuts: timm's `legacy_senet154`."""
    return _imagenet_resnet((3, 8, 36, 3), _senet, options, deep_stem=True)


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of timm's `legacy_seresnet*`, `legacy_seresnext*`, `legacy_senet154` to ours.

    layer0.convK, .bnK                 -> stem.convK, .normK
    layerL.B.convK, .bnK               -> stages.(L-1).B.branch.convK, .normK
    layerL.B.se_module.fcK             -> stages.(L-1).B.branch.se.excitation.fcK
    layerL.B.downsample.0, .1          -> stages.(L-1).B.shortcut.conv, .norm
    last_linear                        -> head
    Raises: ValueError for a key that none of these covers.
    """
    return {_renamed(key): value for key, value in state.items()}


def is_timm(state: Mapping[str, Tensor]) -> bool:
    """Whether every key is one that `from_timm` renames."""
    modules = [key.rpartition(".")[0] for key in state]
    return all(any(pattern.fullmatch(module) for pattern, _ in _TIMM_KEYS) for module in modules)


def check_placement(placement: str) -> None:
    """Raise ValueError, with the names there are, for an unknown placement."""
    if placement not in get_args(Placement):
        raise ValueError(f"placement '{placement}': one of {', '.join(get_args(Placement))}")


def _small(se: SEArgs) -> SEArgs:
    merged: SEArgs = {"ratio": 8}
    merged.update(se)
    return merged


def _basic(planes: int, stride: int) -> tuple[_Conv, ...]:
    return (_Conv(planes, 3, stride), _Conv(planes, 3))


def _bottleneck(planes: int, stride: int) -> tuple[_Conv, ...]:
    return (_Conv(planes, 1, stride), _Conv(planes, 3), _Conv(4 * planes, 1))


def _resnext(planes: int, stride: int) -> tuple[_Conv, ...]:
    return (_Conv(2 * planes, 1), _Conv(2 * planes, 3, stride, groups=32), _Conv(4 * planes, 1))


def _senet(planes: int, stride: int) -> tuple[_Conv, ...]:
    return (_Conv(2 * planes, 1), _Conv(4 * planes, 3, stride, groups=64), _Conv(4 * planes, 1))


def _imagenet_resnet(
    blocks: tuple[int, ...],
    convs: Callable[[int, int], tuple[_Conv, ...]],
    options: _LargeArgs,
    *,
    deep_stem: bool = False,
) -> ResNet:
    """Build four stages of 64, 128, 256, 512 planes behind a stem and a pool that give H/4, W/4."""
    rest = options.copy()
    num_classes, in_channels = rest.pop("num_classes", 1000), rest.pop("in_channels", 3)
    placement = rest.pop("placement", "standard")
    check_placement(placement)
    factory = partial(SqueezeExcite, **cast("SEArgs", rest))
    stem: OrderedDict[str, nn.Module] = OrderedDict()
    if deep_stem:
        stem.update(conv_norm("1", in_channels, 64, 3, stride=2))
        stem.update(conv_norm("2", 64, 64, 3))
        stem.update(conv_norm("3", 64, 128, 3))
    else:
        stem.update(conv_norm("1", in_channels, 64, 7, stride=2))
    stem["pool"] = nn.MaxPool2d(3, 2, ceil_mode=True)
    stages: list[nn.Module] = []
    channels = 128 if deep_stem else 64
    for stage, count in enumerate(blocks):
        made: list[nn.Module] = []
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            rows = convs(64 << stage, stride)
            made.append(
                ResidualBlock(
                    channels,
                    rows,
                    se=factory,
                    placement=placement,
                    shortcut_kernel=3 if deep_stem and stage > 0 else 1,
                    last_act=convs is _basic,
                )
            )
            channels = rows[-1].outputs
        stages.append(nn.Sequential(*made))
    return ResNet(nn.Sequential(stem), stages, channels, num_classes, drop=0.2 if deep_stem else 0.0)


_TIMM_KEYS = (
    (re.compile(r"layer0\.conv(\d)"), r"stem.conv\1"),
    (re.compile(r"layer0\.bn(\d)"), r"stem.norm\1"),
    (re.compile(r"layer(\d)\.(\d+)\.conv(\d)"), r"stages.\1.\2.branch.conv\3"),
    (re.compile(r"layer(\d)\.(\d+)\.bn(\d)"), r"stages.\1.\2.branch.norm\3"),
    (re.compile(r"layer(\d)\.(\d+)\.se_module\.fc(\d)"), r"stages.\1.\2.branch.se.excitation.fc\3"),
    (re.compile(r"layer(\d)\.(\d+)\.downsample\.0"), r"stages.\1.\2.shortcut.conv"),
    (re.compile(r"layer(\d)\.(\d+)\.downsample\.1"), r"stages.\1.\2.shortcut.norm"),
    (re.compile(r"last_linear"), "head"),
)


def _renamed(key: str) -> str:
    module, _, parameter = key.rpartition(".")
    for pattern, name in _TIMM_KEYS:
        match = pattern.fullmatch(module)
        if match:
            ours = match.expand(name).split(".")
            if ours[0] == "stages":
                ours[1] = str(int(ours[1]) - 1)
            return ".".join([*ours, parameter])
    raise ValueError(f"'{key}' is no weight of timm's legacy SE-ResNets")
