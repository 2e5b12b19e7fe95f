"""MobileNetV3: inverted residuals whose SE block sits on the expanded channels, before the projection.

Reference: A. Howard et al., "Searching for MobileNetV3", ICCV 2019 (arXiv:1905.02244), tables 1 and 2.
The hidden width is a quarter of the expanded channels rounded to a multiple of 8, the gate a hard sigmoid.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from torch import nn

from se_deploy.networks.blocks import SEArgs, SEFactory, SqueezeExcite, conv_norm, hidden_units, initialize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from typing_extensions import Unpack


class MobileArgs(SEArgs, total=False):
    """The options of the networks for ImageNet: 1000 classes and 3 channels unless given."""

    num_classes: int
    in_channels: int


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """One row of the paper's tables: kernel, expanded and output channels, SE or not, activation, stride."""

    kernel: int
    expanded: int
    outputs: int
    se: bool
    activation: str
    stride: int


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise kxk, SE, project 1x1; plus x where the shape stays.

    Shapes: x (N, inputs, H, W) -> (N, row.outputs, H/stride, W/stride).
    """

    def __init__(self, inputs: int, row: Bottleneck, se: SEFactory, eps: float) -> None:
        """`row` describes the block; without expansion its first convolution is left out."""
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if row.expanded != inputs:
            layers.update(conv_norm("1", inputs, row.expanded, 1, activation=row.activation, eps=eps))
        layers.update(
            conv_norm(
                "2",
                row.expanded,
                row.expanded,
                row.kernel,
                stride=row.stride,
                groups=row.expanded,
                activation=row.activation,
                eps=eps,
            )
        )
        if row.se:
            layers["se"] = se(row.expanded)
        layers.update(conv_norm("3", row.expanded, row.outputs, 1, activation=None, eps=eps))
        self.branch = nn.Sequential(layers)
        self.keeps_shape = row.stride == 1 and inputs == row.outputs

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on x (N, inputs, H, W)."""
        y: Tensor = self.branch(x)
        return x + y if self.keeps_shape else y


class MobileNetV3(nn.Module):
    """Stem, inverted residuals, a last 1x1 convolution, average over H and W, two linear layers.

    Shapes: x (N, in_channels, H, W) -> logits (N, num_classes).
    """

    def __init__(
        self,
        rows: Sequence[Bottleneck],
        *,
        stem_width: int,
        stem_stride: int,
        last_width: int,
        head_width: int,
        num_classes: int,
        in_channels: int,
        se: SEFactory,
        eps: float = 1e-3,
    ) -> None:
        """`last_width`: channels of the last convolution; `head_width`: units of the hidden linear layer."""
        super().__init__()
        self.stem = nn.Sequential(
            conv_norm("1", in_channels, stem_width, 3, stride=stem_stride, activation="hardswish", eps=eps)
        )
        blocks: list[nn.Module] = []
        channels = stem_width
        for row in rows:
            blocks.append(InvertedResidual(channels, row, se, eps))
            channels = row.outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(conv_norm("1", channels, last_width, 1, activation="hardswish", eps=eps))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(last_width, head_width),
                act1=nn.Hardswish(),
                drop=nn.Dropout(0.2),
                fc2=nn.Linear(head_width, num_classes),
            )
        )
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify x (N, in_channels, H, W): logits (N, num_classes)."""
        x = self.last(self.blocks(self.stem(x)))
        logits: Tensor = self.head(self.flatten(self.pool(x)))
        return logits


def mobilenet_v3_large(**options: Unpack[MobileArgs]) -> MobileNetV3:
    """MobileNetV3-Large for 224x224 images, table 1."""
    rows = (
        Bottleneck(3, 16, 16, False, "relu", 1),
        Bottleneck(3, 64, 24, False, "relu", 2),
        Bottleneck(3, 72, 24, False, "relu", 1),
        Bottleneck(5, 72, 40, True, "relu", 2),
        Bottleneck(5, 120, 40, True, "relu", 1),
        Bottleneck(5, 120, 40, True, "relu", 1),
        Bottleneck(3, 240, 80, False, "hardswish", 2),
        Bottleneck(3, 200, 80, False, "hardswish", 1),
        Bottleneck(3, 184, 80, False, "hardswish", 1),
        Bottleneck(3, 184, 80, False, "hardswish", 1),
        Bottleneck(3, 480, 112, True, "hardswish", 1),
        Bottleneck(3, 672, 112, True, "hardswish", 1),
        Bottleneck(5, 672, 160, True, "hardswish", 2),
        Bottleneck(5, 960, 160, True, "hardswish", 1),
        Bottleneck(5, 960, 160, True, "hardswish", 1),
    )
    return _imagenet(rows, last_width=960, head_width=1280, options=options)


def mobilenet_v3_small(**options: Unpack[MobileArgs]) -> MobileNetV3:
    """MobileNetV3-Small for 224x224 images, table 2."""
    rows = (
        Bottleneck(3, 16, 16, True, "relu", 2),
        Bottleneck(3, 72, 24, False, "relu", 2),
        Bottleneck(3, 88, 24, False, "relu", 1),
        Bottleneck(5, 96, 40, True, "hardswish", 2),
        Bottleneck(5, 240, 40, True, "hardswish", 1),
        Bottleneck(5, 240, 40, True, "hardswish", 1),
        Bottleneck(5, 120, 48, True, "hardswish", 1),
        Bottleneck(5, 144, 48, True, "hardswish", 1),
        Bottleneck(5, 288, 96, True, "hardswish", 2),
        Bottleneck(5, 576, 96, True, "hardswish", 1),
        Bottleneck(5, 576, 96, True, "hardswish", 1),
    )
    return _imagenet(rows, last_width=576, head_width=1024, options=options)


def mobilenet_digits(
    *, num_classes: int = 10, in_channels: int = 1, width: float = 1.0, **se: Unpack[SEArgs]
) -> MobileNetV3:
    """MobileNetV3's blocks in a size for 32x32 or 28x28 one-channel images."""
    rows = (
        Bottleneck(3, 16, 16, True, "relu", 1),
        Bottleneck(3, 64, 24, False, "relu", 2),
        Bottleneck(3, 72, 24, False, "relu", 1),
        Bottleneck(5, 96, 40, True, "hardswish", 2),
        Bottleneck(5, 120, 40, True, "hardswish", 1),
        Bottleneck(5, 120, 40, True, "hardswish", 1),
    )
    return MobileNetV3(
        tuple(_widen(row, width) for row in rows),
        stem_width=_widened(16, width),
        stem_stride=1,
        last_width=_widened(160, width),
        head_width=_widened(128, width),
        num_classes=num_classes,
        in_channels=in_channels,
        se=mobile_se(se),
        eps=1e-5,
    )


def mobile_se(se: SEArgs) -> SEFactory:
    """Make SE blocks as MobileNetV3 has them where `se` says nothing else."""
    merged: SEArgs = {"ratio": 4, "divisor": 8, "gate": "hardsigmoid"}
    merged.update(se)
    return partial(SqueezeExcite, **merged)


def _imagenet(
    rows: Sequence[Bottleneck], *, last_width: int, head_width: int, options: MobileArgs
) -> MobileNetV3:
    rest = options.copy()
    num_classes, in_channels = rest.pop("num_classes", 1000), rest.pop("in_channels", 3)
    return MobileNetV3(
        rows,
        stem_width=16,
        stem_stride=2,
        last_width=last_width,
        head_width=head_width,
        num_classes=num_classes,
        in_channels=in_channels,
        se=mobile_se(cast("SEArgs", rest)),
    )


def _widen(row: Bottleneck, width: float) -> Bottleneck:
    return Bottleneck(
        row.kernel,
        _widened(row.expanded, width),
        _widened(row.outputs, width),
        row.se,
        row.activation,
        row.stride,
    )


def _widened(channels: int, width: float) -> int:
    return hidden_units(channels, 1 / width, 8)
