"""Inception networks with one SE block behind every inception module, as in Hu et al., figure 2.

References: S. Ioffe, C. Szegedy, arXiv:1502.03167 (BN-Inception; where the paper's table and the authors'
Caffe network differ, in the channels of modules 4c and 4d, this is the Caffe network);
C. Szegedy et al., arXiv:1512.00567 (Inception-v3); J. Hu, L. Shen, G. Sun, arXiv:1709.01507 (SE).
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from se_deploy.networks.blocks import SEArgs, SEFactory, SqueezeExcite, conv_norm, initialize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from typing_extensions import Unpack

Placement = Literal["standard", "none"]
"""Behind every inception module, or nowhere (the plain network)."""
_Step = tuple[int, int | tuple[int, int]]
"""Output channels and kernel of one convolution with BatchNorm and ReLU."""


class Branches(nn.Module):
    """Several paths over one tensor, their outputs beside each other, then the SE block.

    Shapes: x (N, C, H, W) -> (N, sum of the paths' channels, H/stride, W/stride).
    """

    def __init__(self, paths: Mapping[str, nn.Module], se: nn.Module) -> None:
        """`paths` in the order of their channels; `se` is the identity where there is no block."""
        super().__init__()
        self.paths = nn.ModuleDict(dict(paths))
        self.se = se

    def forward(self, x: Tensor) -> Tensor:
        """Run every path on x and recalibrate what they give together."""
        y: Tensor = self.se(torch.cat([path(x) for path in self.paths.values()], dim=1))
        return y


class Inception(nn.Module):
    """Stem, inception modules, average over H and W, linear classifier.

    Shapes: x (N, in_channels, H, W) -> logits (N, num_classes).
    """

    def __init__(
        self, stem: nn.Module, body: Sequence[nn.Module], features: int, num_classes: int, drop: float
    ) -> None:
        """`features`: channels that the body gives; `drop`: dropout before the classifier."""
        super().__init__()
        self.stem = stem
        self.body = nn.Sequential(*body)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(features, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify x (N, in_channels, H, W): logits (N, num_classes)."""
        x = self.flatten(self.pool(self.body(self.stem(x))))
        logits: Tensor = self.head(self.drop(x))
        return logits


def se_bn_inception(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    placement: Placement = "standard",
    **se: Unpack[SEArgs],
) -> Inception:
    """SE-BN-Inception for 224x224 images."""
    make = _factory(placement, se)
    stem = nn.Sequential(
        OrderedDict(
            **conv_norm("1", in_channels, 64, 7, stride=2),
            pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
            **conv_norm("2", 64, 64, 1),
            **conv_norm("3", 64, 192, 3),
            pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
        )
    )
    body = [
        _mixed(192, 64, (64, 64), (64, 96, 96), ("avg", 32), make),
        _mixed(256, 64, (64, 96), (64, 96, 96), ("avg", 64), make),
        _reduction(320, (128, 160), (64, 96, 96), make),
        _mixed(576, 224, (64, 96), (96, 128, 128), ("avg", 128), make),
        _mixed(576, 192, (96, 128), (96, 128, 128), ("avg", 128), make),
        _mixed(576, 160, (128, 160), (128, 160, 160), ("avg", 128), make),
        _mixed(608, 96, (128, 192), (160, 192, 192), ("avg", 128), make),
        _reduction(608, (128, 192), (192, 256, 256), make),
        _mixed(1056, 352, (192, 320), (160, 224, 224), ("avg", 128), make),
        _mixed(1024, 352, (192, 320), (192, 224, 224), ("max", 128), make),
    ]
    return Inception(stem, body, 1024, num_classes, drop=0.0)


def se_inception_small(
    *, num_classes: int = 10, in_channels: int = 1, placement: Placement = "standard", **se: Unpack[SEArgs]
) -> Inception:
    """Build a small SE-BN-Inception for 32x32 or 28x28 images; ratio 8 unless given."""
    small: SEArgs = {"ratio": 8}
    small.update(se)
    make = _factory(placement, small)
    stem = nn.Sequential(conv_norm("1", in_channels, 24, 3))
    body = [
        _mixed(24, 16, (12, 16), (8, 12, 12), ("avg", 4), make),
        _reduction(48, (24, 32), (12, 16, 16), make),
        _mixed(96, 32, (24, 32), (12, 16, 16), ("avg", 16), make),
        _reduction(96, (32, 48), (16, 24, 24), make),
        _mixed(168, 56, (32, 56), (16, 32, 32), ("max", 24), make),
    ]
    return Inception(stem, body, 168, num_classes, drop=0.1)


def se_inception_v3(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    placement: Placement = "standard",
    **se: Unpack[SEArgs],
) -> Inception:
    """SE-Inception-v3 for 299x299 images, without the auxiliary classifier that only training uses."""
    make = _factory(placement, se)
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    steps.update(_conv("1", in_channels, 32, 3, stride=2, padding=0))
    steps.update(_conv("2", 32, 32, 3, padding=0))
    steps.update(_conv("3", 32, 64, 3))
    steps["pool1"] = nn.MaxPool2d(3, 2)
    steps.update(_conv("4", 64, 80, 1))
    steps.update(_conv("5", 80, 192, 3, padding=0))
    steps["pool2"] = nn.MaxPool2d(3, 2)
    body: list[nn.Module] = [
        _grid35(192, 32, make),
        _grid35(256, 64, make),
        _grid35(288, 64, make),
        _to_grid17(288, make),
        *(_grid17(768, width, make) for width in (128, 160, 160, 192)),
        _to_grid8(768, make),
        _grid8(1280, make),
        _grid8(2048, make),
    ]
    return Inception(nn.Sequential(steps), body, 2048, num_classes, drop=0.5)


def _factory(placement: str, se: SEArgs) -> SEFactory:
    if placement not in ("standard", "none"):
        raise ValueError(f"placement '{placement}': one of standard, none")
    return partial(SqueezeExcite, **se) if placement == "standard" else _no_block


def _no_block(channels: int) -> nn.Module:
    del channels  # the identity fits any
    return nn.Identity()


def _path(
    inputs: int, *steps: _Step, stride: int = 1, eps: float = 1e-5, valid_last: bool = False
) -> nn.Module:
    """Chain convolutions; the last one has the stride, and no padding with `valid_last`."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (outputs, kernel) in enumerate(steps, 1):
        last = index == len(steps)
        layers.update(
            conv_norm(
                str(index),
                inputs,
                outputs,
                kernel,
                stride=stride if last else 1,
                padding=0 if last and valid_last else None,
                eps=eps,
            )
        )
        inputs = outputs
    return nn.Sequential(layers)


def _mixed(  # noqa: PLR0917 - a row of the paper's table
    inputs: int,
    single: int,
    triple: tuple[int, int],
    double: tuple[int, int, int],
    pool: tuple[Literal["avg", "max"], int],
    make: SEFactory,
) -> Branches:
    kind, pooled = pool
    pooling = nn.AvgPool2d(3, 1, 1) if kind == "avg" else nn.MaxPool2d(3, 1, 1)
    paths = {
        "wide1": _path(inputs, (single, 1)),
        "wide3": _path(inputs, (triple[0], 1), (triple[1], 3)),
        "wide33": _path(inputs, (double[0], 1), (double[1], 3), (double[2], 3)),
        "pool": nn.Sequential(OrderedDict(pool=pooling, **conv_norm("1", inputs, pooled, 1))),
    }
    return Branches(paths, make(single + triple[-1] + double[-1] + pooled))


def _reduction(
    inputs: int, triple: tuple[int, int], double: tuple[int, int, int], make: SEFactory
) -> Branches:
    paths = {
        "wide3": _path(inputs, (triple[0], 1), (triple[1], 3), stride=2),
        "wide33": _path(inputs, (double[0], 1), (double[1], 3), (double[2], 3), stride=2),
        "pool": nn.MaxPool2d(3, 2, ceil_mode=True),
    }
    return Branches(paths, make(triple[-1] + double[-1] + inputs))


_V3_EPS = 1e-3  # as the TensorFlow original
_conv = partial(conv_norm, eps=_V3_EPS)
_path_v3 = partial(_path, eps=_V3_EPS)


def _pool_v3(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(OrderedDict(pool=nn.AvgPool2d(3, 1, 1), **_conv("1", inputs, outputs, 1)))


def _grid35(inputs: int, pooled: int, make: SEFactory) -> Branches:
    paths = {
        "wide1": _path_v3(inputs, (64, 1)),
        "wide5": _path_v3(inputs, (48, 1), (64, 5)),
        "wide33": _path_v3(inputs, (64, 1), (96, 3), (96, 3)),
        "pool": _pool_v3(inputs, pooled),
    }
    return Branches(paths, make(64 + 64 + 96 + pooled))


def _to_grid17(inputs: int, make: SEFactory) -> Branches:
    paths = {
        "wide3": _path_v3(inputs, (384, 3), stride=2, valid_last=True),
        "wide33": _path_v3(inputs, (64, 1), (96, 3), (96, 3), stride=2, valid_last=True),
        "pool": nn.MaxPool2d(3, 2),
    }
    return Branches(paths, make(384 + 96 + inputs))


def _grid17(inputs: int, width: int, make: SEFactory) -> Branches:
    row, column = (1, 7), (7, 1)
    paths = {
        "wide1": _path_v3(inputs, (192, 1)),
        "wide7": _path_v3(inputs, (width, 1), (width, row), (192, column)),
        "wide77": _path_v3(inputs, (width, 1), (width, column), (width, row), (width, column), (192, row)),
        "pool": _pool_v3(inputs, 192),
    }
    return Branches(paths, make(768))


def _to_grid8(inputs: int, make: SEFactory) -> Branches:
    paths = {
        "wide3": _path_v3(inputs, (192, 1), (320, 3), stride=2, valid_last=True),
        "wide7": _path_v3(
            inputs, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3), stride=2, valid_last=True
        ),
        "pool": nn.MaxPool2d(3, 2),
    }
    return Branches(paths, make(320 + 192 + inputs))


def _grid8(inputs: int, make: SEFactory) -> Branches:
    fork = {"row": _path_v3(384, (384, (1, 3))), "column": _path_v3(384, (384, (3, 1)))}
    second = {"row": _path_v3(384, (384, (1, 3))), "column": _path_v3(384, (384, (3, 1)))}
    paths = {
        "wide1": _path_v3(inputs, (320, 1)),
        "wide3": nn.Sequential(_path_v3(inputs, (384, 1)), Branches(fork, nn.Identity())),
        "wide33": nn.Sequential(_path_v3(inputs, (448, 1), (384, 3)), Branches(second, nn.Identity())),
        "pool": _pool_v3(inputs, 192),
    }
    return Branches(paths, make(2048))
