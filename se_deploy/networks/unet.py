"""A U-Net whose encoder and decoder blocks end in concurrent spatial and channel squeeze-and-excitation.

References: A. G. Roy, N. Navab, C. Wachinger, "Concurrent Spatial and Channel Squeeze & Excitation in Fully
Convolutional Networks", MICCAI 2018 (arXiv:1803.02579), and their journal version, arXiv:1808.08127;
O. Ronneberger, P. Fischer, T. Brox, arXiv:1505.04597 (U-Net). Their U-Net has four encoder blocks, one
bottleneck, four decoder blocks, 64 channels everywhere and 2.1 million parameters. They do not say how these
are spread: two 5x5 convolutions a block and one in the bottleneck make as many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from se_deploy.networks.blocks import SEArgs, SqueezeExcite, conv_norm, initialize

if TYPE_CHECKING:
    from collections import OrderedDict

    from torch import Tensor
    from typing_extensions import Unpack

_LEVELS = 4
_KERNEL = 5


class SCSE(nn.Module):
    """x * gate of each channel + x * gate of each pixel: cSE + sSE, x (N, C, H, W).

    The gate of a pixel is the sigmoid of a weighted sum over its channels.
    """

    def __init__(self, channels: int, se: SEArgs) -> None:
        """`se`: options of the channels' gate; it and the pixels' have the same bias or none."""
        super().__init__()
        self.channel = SqueezeExcite(channels, **se)
        self.pixel = nn.Conv2d(channels, 1, 1, bias=se.get("bias", True))

    def forward(self, x: Tensor) -> Tensor:
        """Recalibrate channels and pixels of x."""
        y: Tensor = self.channel(x) + x * torch.sigmoid(self.pixel(x))
        return y


class UNet(nn.Module):
    """Class scores for every pixel.

    Shapes: x (N, in_channels, H, W), any H and W from 16 -> scores (N, num_classes, H, W).
    """

    def __init__(self, *, num_classes: int, in_channels: int, width: int, se: SEArgs) -> None:
        """`width`: channels of every block."""
        super().__init__()
        self.encoder = nn.ModuleList(
            _block(in_channels if level == 0 else width, width, se) for level in range(_LEVELS)
        )
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = nn.Sequential(conv_norm("1", width, width, _KERNEL))
        self.decoder = nn.ModuleList(_block(2 * width, width, se) for _ in range(_LEVELS))
        self.head = nn.Conv2d(width, num_classes, 1)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Score the classes of every pixel of x."""
        kept = []
        for block in self.encoder:
            x = block(x)
            kept.append(x)
            x = self.pool(x)
        x = self.bottleneck(x)
        for block in self.decoder:
            skipped = kept.pop()
            # To the size of what it joins, not twice its own: an odd side was rounded down by the pool.
            x = functional.interpolate(x, size=skipped.shape[2:], mode="nearest")
            x = block(torch.cat([skipped, x], 1))
        scores: Tensor = self.head(x)
        return scores


def scse_unet(*, num_classes: int = 28, in_channels: int = 1, width: int = 64, **se: Unpack[SEArgs]) -> UNet:
    """U-Net with scSE for 27 structures of the brain and the background; ratio 2 and no bias unless given."""
    options: SEArgs = {"ratio": 2, "bias": False}
    options.update(se)
    return UNet(num_classes=num_classes, in_channels=in_channels, width=width, se=options)


def _block(inputs: int, outputs: int, se: SEArgs) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = conv_norm("1", inputs, outputs, _KERNEL)
    layers.update(conv_norm("2", outputs, outputs, _KERNEL))
    layers["scse"] = SCSE(outputs, se)
    return nn.Sequential(layers)
