"""SE-ResNet, SE-ResNeXt and SENet, for ImageNet and for small images, with every placement of the block.

References: J. Hu, L. Shen, G. Sun, arXiv:1709.01507 (SE-ResNet, SE-ResNeXt, SENet-154, the placements);
K. He et al., arXiv:1512.03385 (ResNet-20 and -56 for 32x32 images).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from torch import nn

from se_deploy.networks.blocks import SEArgs, SEFactory, SqueezeExcite, conv_norm, initialize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from typing_extensions import Unpack

Placement = Literal["standard", "pre", "post", "identity", "inner", "per_conv", "none"]
"""Where the block sits: behind the branch, before it, behind the sum and its ReLU, on the shortcut, behind
the 3x3 convolution alone, behind every convolution; "none" is the plain ResNet."""


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
    ) -> None:
        """`convs` run in order, ReLU between; the shortcut is a convolution where the shape changes."""
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
            if index < len(convs):
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
    factory = partial(SqueezeExcite, **_with_ratio(se, 8))
    return small_resnet(
        3, num_classes=num_classes, in_channels=in_channels, width=width, se=factory, placement=placement
    )


def se_resnet56(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    placement: Placement = "standard",
    **se: Unpack[SEArgs],
) -> ResNet:
    """SE-ResNet-56 for 32x32 colour images; ratio 8 unless given."""
    factory = partial(SqueezeExcite, **_with_ratio(se, 8))
    return small_resnet(
        9, num_classes=num_classes, in_channels=in_channels, width=width, se=factory, placement=placement
    )


def check_placement(placement: str) -> None:
    """Raise ValueError, with the names there are, for an unknown placement."""
    if placement not in get_args(Placement):
        raise ValueError(f"placement '{placement}': one of {', '.join(get_args(Placement))}")


def _with_ratio(se: SEArgs, ratio: float) -> SEArgs:
    merged: SEArgs = {"ratio": ratio}
    merged.update(se)
    return merged
