"""SE-Res2Net-50: a ResNet whose 3x3 convolutions run in scales, with an SE block behind each branch.

Reference: S.-H. Gao et al., "Res2Net: A New Multi-scale Backbone Architecture", TPAMI 2019
(arXiv:1904.01169), whose section 4 has SE-Res2Net-50 in its table for ImageNet; J. Hu et al.,
arXiv:1709.01507 (the SE block). The setting is the paper's 26w x 4s. The paper has no number of parameters
for the network with SE blocks; without them it is Res2Net-50's 25.7 million, and they add what Hu et al.'s
formula says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn

from se_deploy.networks.blocks import SEArgs, SqueezeExcite, conv_norm
from se_deploy.networks.resnet import ResNet

if TYPE_CHECKING:
    from collections import OrderedDict

    from torch import Tensor
    from typing_extensions import Unpack

Res2Placement = Literal["standard", "none"]
"""Behind the branch, as in the paper's figure 3; "none" is the plain Res2Net."""

_BASE = 64  # planes at which one scale has `width` channels
_EXPANSION = 4


class MultiScale(nn.Module):
    """3x3 convolutions in a row over `scale` groups of channels, equation 1 of the paper.

    The first group is not convolved; each but the second has the one before added to it. A block that opens
    a stage changes the size: it adds nothing, and averages its first group.
    Shapes: x (N, scale * width, H, W) -> (N, scale * width, H/stride, W/stride).
    """

    def __init__(self, width: int, scale: int, stride: int, *, opens: bool) -> None:
        """`opens`: whether the block is its stage's first."""
        super().__init__()
        self.scale, self.opens = scale, opens
        self.convs = nn.ModuleList(
            nn.Sequential(conv_norm("", width, width, 3, stride=stride)) for _ in range(1, scale)
        )
        self.pool = nn.AvgPool2d(3, stride, 1) if opens else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve group after group."""
        first, *others = torch.chunk(x, self.scale, 1)
        made = [self.pool(first)]
        for conv, part in zip(self.convs, others, strict=True):
            made.append(conv(part if self.opens or len(made) == 1 else part + made[-1]))
        return torch.cat(made, 1)


class Res2Block(nn.Module):
    """relu(se(conv(scales(conv(x)))) + shortcut(x)).

    Shapes: x (N, inputs, H, W) -> (N, 4 * planes, H/stride, W/stride).
    """

    def __init__(self, inputs: int, planes: int, inner: MultiScale, between: int, *, stride: int) -> None:
        """`between`: channels that `inner` takes and gives."""
        super().__init__()
        outputs = _EXPANSION * planes
        layers = conv_norm("1", inputs, between, 1)
        layers["scales"] = inner
        layers.update(conv_norm("3", between, outputs, 1, activation=None))
        self.branch = nn.Sequential(layers)
        changed = stride > 1 or inputs != outputs
        self.shortcut = (
            nn.Sequential(conv_norm("", inputs, outputs, 1, stride=stride, activation=None))
            if changed
            else nn.Identity()
        )
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on x."""
        y: Tensor = self.act(self.branch(x) + self.shortcut(x))
        return y


def se_res2net50(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    planes: int = _BASE,
    width: int = 26,
    scale: int = 4,
    placement: Res2Placement = "standard",
    **se: Unpack[SEArgs],
) -> ResNet:
    """SE-Res2Net-50: `scale` groups of `width` channels where a stage has 64 planes; ratio 16.

    `planes`: of the first stage, 64 in the paper.
    """
    if placement not in get_args(Res2Placement):
        raise ValueError(f"placement '{placement}': one of {', '.join(get_args(Res2Placement))}")
    stem: OrderedDict[str, nn.Module] = conv_norm("1", in_channels, planes, 7, stride=2)
    stem["pool"] = nn.MaxPool2d(3, 2, 1)
    channels = planes
    stages = []
    for stage, count in enumerate((3, 4, 6, 3)):
        wide = planes << stage
        group = wide * width // _BASE
        blocks = []
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            inner = MultiScale(group, scale, stride, opens=index == 0)
            block = Res2Block(channels, wide, inner, group * scale, stride=stride)
            channels = _EXPANSION * wide
            if placement == "standard":
                block.branch.add_module("se", SqueezeExcite(channels, **se))
            blocks.append(block)
        stages.append(nn.Sequential(*blocks))
    return ResNet(nn.Sequential(stem), stages, channels, num_classes)
