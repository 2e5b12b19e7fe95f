"""A small CoAtNet: stages of SE convolutions, then stages of self-attention.

Reference: Z. Dai et al., "CoAtNet: Marrying Convolution and Attention for All Data Sizes", arXiv:2106.04803.
The order is the paper's C-C-T-T; the widths are small, for 32x32 images.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from se_deploy.networks.blocks import SEArgs, SEFactory, SqueezeExcite, conv_norm, initialize

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack


class MBConv(nn.Module):
    """Norm, expand 1x1, depthwise 3x3, SE, project 1x1, plus the shortcut.

    Shapes: x (N, inputs, H, W) -> (N, outputs, H/stride, W/stride). The SE block has SiLU inside and a
    quarter of the block's inputs, not of the expanded channels, as its hidden width.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, se: SEFactory) -> None:
        """The shortcut of a block that halves the size is an average pool and a 1x1 convolution."""
        super().__init__()
        expanded = 4 * outputs
        layers: OrderedDict[str, nn.Module] = OrderedDict(norm0=nn.BatchNorm2d(inputs))
        layers.update(conv_norm("1", inputs, expanded, 1, activation="gelu"))
        layers.update(
            conv_norm("2", expanded, expanded, 3, stride=stride, groups=expanded, activation="gelu")
        )
        layers["se"] = se(expanded)
        layers["conv3"] = nn.Conv2d(expanded, outputs, 1)
        self.branch = nn.Sequential(layers)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on x."""
        y: Tensor = self.branch(x) + self.shortcut(x)
        return y


class RelativeAttention(nn.Module):
    """Softmax attention over the positions of a side x side map, with a learned bias per offset and head.

    Shapes: x (N, side * side, channels) -> the same.
    """

    def __init__(self, channels: int, side: int, heads: int) -> None:
        """`heads` divides `channels`."""
        super().__init__()
        self.channels = channels
        self.places = side * side
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.project = nn.Linear(channels, 3 * channels)
        self.merge = nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros(heads, (2 * side - 1) ** 2))
        places = torch.arange(side * side)
        rows, columns = places // side, places % side
        row = rows[:, None] - rows[None, :] + side - 1
        column = columns[:, None] - columns[None, :] + side - 1
        self.register_buffer("offset", row * (2 * side - 1) + column, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        offset: Tensor = self.get_buffer("offset")
        parts = self.project(x).reshape(-1, self.places, 3, self.heads, self.channels // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(
            0
        )  # each (N, heads, places, channels / heads)
        scores = query @ key.transpose(2, 3) * self.scale + self.bias[:, offset]
        attended = (scores.softmax(3) @ value).transpose(1, 2)
        y: Tensor = self.merge(attended.reshape(-1, self.places, self.channels))
        return y


class Transformer(nn.Module):
    """Attention and a two-layer perceptron, each behind a LayerNorm and beside a shortcut.

    Shapes: x (N, inputs, H, W) -> (N, outputs, H/stride, W/stride), H/stride = W/stride = side.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, side: int, heads: int) -> None:
        """`side`: of the map that it attends over, after the stride."""
        super().__init__()
        self.channels = outputs
        self.side = side
        self.enter = _shortcut(inputs, outputs, stride)
        self.norm1 = nn.LayerNorm(outputs)
        self.attention = RelativeAttention(outputs, side, heads)
        self.norm2 = nn.LayerNorm(outputs)
        self.perceptron = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(outputs, 4 * outputs), act1=nn.GELU(), fc2=nn.Linear(4 * outputs, outputs)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on x."""
        places = self.enter(x).reshape(-1, self.channels, self.side * self.side).transpose(1, 2)
        places = places + self.attention(self.norm1(places))
        places = places + self.perceptron(self.norm2(places))
        y: Tensor = places.transpose(1, 2).reshape(-1, self.channels, self.side, self.side)
        return y


class CoAtNet(nn.Module):
    """Stem, two stages of MBConv, two of attention, average over H and W, linear classifier.

    Shapes: x (N, in_channels, side, side) -> logits (N, num_classes).
    """

    def __init__(
        self, *, in_channels: int, num_classes: int, side: int, width: int, blocks: int, se: SEFactory
    ) -> None:
        """`side` is a multiple of 8; `width` channels in the stem and in the first stage."""
        super().__init__()
        self.stem = nn.Sequential(conv_norm("1", in_channels, width, 3, activation="gelu"))
        layers: list[nn.Module] = []
        channels = width
        for stage in range(4):
            outputs, stride = (width, 2 * width, 4 * width, 6 * width)[stage], 1 if stage == 0 else 2
            for index in range(blocks):
                step = stride if index == 0 else 1
                if stage < 2:  # noqa: PLR2004 - two stages of convolutions, two of attention
                    layers.append(MBConv(channels, outputs, step, se))
                else:
                    layers.append(Transformer(channels, outputs, step, side >> stage, heads=4))
                channels = outputs
        self.body = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify x."""
        logits: Tensor = self.head(self.norm(self.flatten(self.pool(self.body(self.stem(x))))))
        return logits


def se_coatnet_small(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    side: int = 32,
    width: int = 24,
    blocks: int = 2,
    **se: Unpack[SEArgs],
) -> CoAtNet:
    """Build a CoAtNet for square images whose `side` is a multiple of 8; SE ratio 16, SiLU unless given."""
    if side % 8:
        raise ValueError(f"side {side}: three halvings need a multiple of 8")
    options: SEArgs = {"ratio": 16, "activation": "silu"}
    options.update(se)
    return CoAtNet(
        in_channels=in_channels,
        num_classes=num_classes,
        side=side,
        width=width,
        blocks=blocks,
        se=partial(SqueezeExcite, **options),
    )


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stride > 1:
        layers["pool"] = nn.AvgPool2d(stride)
    if inputs != outputs:
        layers["conv"] = nn.Conv2d(inputs, outputs, 1)
    return nn.Sequential(layers) if layers else nn.Identity()
