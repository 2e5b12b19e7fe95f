"""SE-VGG-16 with BatchNorm, the plain stack of convolutions.

References: K. Simonyan, A. Zisserman, arXiv:1409.1556 (configuration D); J. Hu, L. Shen, G. Sun,
arXiv:1709.01507, table 2, which adds the BatchNorm.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from torch import nn

from se_deploy.networks.blocks import SEArgs, SqueezeExcite, conv_norm, initialize

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

Placement = Literal["standard", "per_conv", "none"]
"""Behind the last convolution of each of the five stages, which gives the 15.48 GMACs of Hu et al., behind
every convolution, or nowhere."""
_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG(nn.Module):
    """Five stages of convolutions and a pool each, then three linear layers.

    Shapes: x (N, in_channels, H, W), H and W at least 32 -> logits (N, num_classes).
    """

    def __init__(self, body: nn.Module, side: int, hidden: int, num_classes: int) -> None:
        """`side`: H and W that the linear layers see; `hidden`: their units."""
        super().__init__()
        self.body = body
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.flatten = nn.Flatten()
        self.head = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(512 * side * side, hidden),
                act1=nn.ReLU(),
                drop1=nn.Dropout(0.5),
                fc2=nn.Linear(hidden, hidden),
                act2=nn.ReLU(),
                drop2=nn.Dropout(0.5),
                fc3=nn.Linear(hidden, num_classes),
            )
        )
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify x (N, in_channels, H, W): logits (N, num_classes)."""
        logits: Tensor = self.head(self.flatten(self.pool(self.body(x))))
        return logits


def se_vgg16(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    side: int = 7,
    hidden: int = 4096,
    placement: Placement = "standard",
    **se: Unpack[SEArgs],
) -> VGG:
    """SE-VGG-16 for 224x224 images; `side` 1 and a small `hidden` suit 32x32."""
    if placement not in get_args(Placement):
        raise ValueError(f"placement '{placement}': one of {', '.join(get_args(Placement))}")
    make = partial(SqueezeExcite, **se)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for stage, (width, count) in enumerate(_STAGES, 1):
        for index in range(1, count + 1):
            name = f"{stage}_{index}"
            layers.update(conv_norm(name, channels, width, 3))
            if placement == "per_conv" or (placement == "standard" and index == count):
                layers[f"se{name}"] = make(width)
            channels = width
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    return VGG(nn.Sequential(layers), side, hidden, num_classes)
