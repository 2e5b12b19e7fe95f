"""The networks that ship, by the name that `se_deploy:NAME` and `se-deploy networks` use."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from se_deploy.networks import mobilenet, resnet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

DIGITS = tuple("0123456789")
DIGITS_MEAN = (0.1,)  # of the shipped training digits, padded to 32x32, rounded
DIGITS_STD = (0.276,)


@dataclass(frozen=True, slots=True)
class Entry:
    """A network that ships; it expects pixels in [0, 1] minus `mean`, over `std`, as (N, C, H, W)."""

    name: str
    build: Callable[..., nn.Module]  # keyword arguments only, all with defaults: what --model-arg gives
    input_size: tuple[int, int, int]  # (C, H, W)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reference: str
    labels: tuple[str, ...] = ()
    checkpoint: str | None = None  # a file of the shipped calibration folder


def _digits(name: str, build: Callable[..., nn.Module], reference: str, checkpoint: str | None) -> Entry:
    return Entry(name, build, (1, 32, 32), DIGITS_MEAN, DIGITS_STD, reference, DIGITS, checkpoint)


_ENTRIES = (
    _digits(
        "se_resnet20",
        resnet.se_resnet20,
        "He et al. 2015, arXiv:1512.03385; Hu et al. 2017, arXiv:1709.01507",
        "se_resnet20_digits.safetensors",
    ),
    _digits(
        "mobilenet_digits",
        mobilenet.mobilenet_digits,
        "Howard et al. 2019, arXiv:1905.02244",
        "mobilenet_digits.safetensors",
    ),
)
NETWORKS: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
