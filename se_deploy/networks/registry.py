"""The networks that ship, by the name that `se_deploy:NAME` and `se-deploy networks` use."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from se_deploy.networks import (
    autoencoder,
    coatnet,
    ecapa,
    inception,
    mobilenet,
    res2net,
    resnet,
    unet,
    vgg,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

DIGITS = tuple("0123456789")
DIGITS_MEAN = (0.1,)  # of the shipped training digits, padded to 32x32, rounded
DIGITS_STD = (0.276,)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Entry:
    """A network that ships; an image is pixels in [0, 1] minus `mean`, over `std`, as (N, C, H, W)."""

    name: str
    build: Callable[..., nn.Module]  # keyword arguments only, all with defaults: what --model-arg gives
    input_size: tuple[int, ...]  # (C, H, W), or (C, T) of a signal
    mean: tuple[float, ...]  # () of a signal
    std: tuple[float, ...]
    reference: str
    labels: tuple[str, ...] = ()
    checkpoint: str | None = None  # a file of the shipped calibration folder
    input_name: str = "input"
    free: tuple[str | None, ...] = ()  # the name of each size that may be any other; (): none may


def _digits(build: Callable[..., nn.Module], reference: str, checkpoint: str | None = None) -> Entry:
    name = build.__name__
    return Entry(name, build, (1, 32, 32), DIGITS_MEAN, DIGITS_STD, reference, DIGITS, checkpoint)


def _imagenet(build: Callable[..., nn.Module], reference: str, side: int = 224) -> Entry:
    return Entry(build.__name__, build, (3, side, side), IMAGENET_MEAN, IMAGENET_STD, reference)


def _pixels(build: Callable[..., nn.Module], reference: str) -> Entry:
    return Entry(build.__name__, build, (1, 32, 32), (0.0,), (1.0,), reference)


def _speech(build: Callable[..., nn.Module], reference: str) -> Entry:
    return Entry(build.__name__, build, (80, 200), (), (), reference, input_name="feats", free=(None, "T"))


_HU = "Hu et al. 2018, arXiv:1709.01507"
_HE = f"He et al. 2016, arXiv:1512.03385; {_HU}"
_XIE = f"Xie et al. 2017, arXiv:1611.05431; {_HU}"
_MOBILE = "Howard et al. 2019, arXiv:1905.02244"
_ECAPA = "Desplanques et al. 2020, arXiv:2005.07143"
_ENTRIES = (
    _digits(resnet.se_resnet20, _HE, "se_resnet20_digits.safetensors"),
    _digits(resnet.se_resnet56, _HE),
    _imagenet(resnet.se_resnet18, _HE),
    _imagenet(resnet.se_resnet34, _HE),
    _imagenet(resnet.se_resnet50, _HE),
    _imagenet(resnet.se_resnet101, _HE),
    _imagenet(resnet.se_resnet152, _HE),
    _imagenet(resnet.se_resnext50_32x4d, _XIE),
    _imagenet(resnet.se_resnext101_32x4d, _XIE),
    _imagenet(resnet.senet154, _HU),
    _imagenet(inception.se_bn_inception, f"Ioffe and Szegedy 2015, arXiv:1502.03167; {_HU}"),
    _imagenet(inception.se_inception_v3, f"Szegedy et al. 2016, arXiv:1512.00567; {_HU}", side=299),
    _digits(inception.se_inception_small, f"Ioffe and Szegedy 2015, arXiv:1502.03167; {_HU}"),
    _imagenet(vgg.se_vgg16, f"Simonyan and Zisserman 2015, arXiv:1409.1556; {_HU}"),
    _imagenet(mobilenet.mobilenet_v3_small, _MOBILE),
    _imagenet(mobilenet.mobilenet_v3_large, _MOBILE),
    _digits(mobilenet.mobilenet_digits, _MOBILE, "mobilenet_digits.safetensors"),
    _digits(resnet.adaptive_se_resnet20, f"{_HE}; the ratio is learned, see se_deploy.networks.adaptive"),
    _digits(resnet.deep_se_resnet20, f"{_HE}; four layers in each excitation"),
    _digits(resnet.conv_se_resnet20, f"{_HE}; a block behind every convolution"),
    _pixels(autoencoder.se_autoencoder, _HU),
    _pixels(autoencoder.se_vae, f"Kingma and Welling 2014, arXiv:1312.6114; {_HU}"),
    _digits(coatnet.se_coatnet_small, "Dai et al. 2021, arXiv:2106.04803"),
    _imagenet(res2net.se_res2net50, f"Gao et al. 2019, arXiv:1904.01169; {_HU}"),
    _speech(ecapa.ecapa_tdnn, _ECAPA),
    _speech(ecapa.ecapa_tdnn_1024, _ECAPA),
    Entry(
        "scse_unet",
        unet.scse_unet,
        (1, 256, 256),
        (0.0,),
        (1.0,),
        "Roy et al. 2018, arXiv:1803.02579",
        free=(None, "H", "W"),
    ),
)
NETWORKS: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
