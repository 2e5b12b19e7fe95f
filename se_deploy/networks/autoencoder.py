"""An SE convolutional autoencoder and a variational one, with every usual way to halve and double a side.

References: D. P. Kingma, M. Welling, arXiv:1312.6114 (VAE); W. Shi et al., arXiv:1609.05158 (pixel shuffle).
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import nn

from se_deploy.networks.blocks import SEArgs, SEFactory, SqueezeExcite, conv_norm, initialize

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

Down = Literal["strided_conv", "max_pool", "average_pool", "lp_pool", "space_to_depth"]
Up = Literal["transposed_conv", "nearest", "bilinear", "pixel_shuffle"]


class Latent(NamedTuple):
    """Mean and log variance of the code's normal distribution, each (N, code)."""

    mean: Tensor
    log_variance: Tensor


class L2Pool(nn.Module):
    """Root of the sum of squares of each 2x2 window: (N, C, H, W) -> (N, C, H/2, W/2).

    What LPPool2d(2) computes, with a root whose gradient at zero is finite.
    """

    def __init__(self) -> None:
        """The window is 2x2, its stride 2."""
        super().__init__()
        self.mean = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Pool x."""
        return torch.sqrt(4 * self.mean(x * x) + 1e-12)


class ToMap(nn.Module):
    """(N, C * side * side) -> (N, C, side, side); unlike nn.Unflatten it asks for no shape in a trace."""

    def __init__(self, channels: int, side: int) -> None:
        """Take the sizes of the map."""
        super().__init__()
        self.channels = channels
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Reshape x."""
        return x.reshape(-1, self.channels, self.side, self.side)


class Autoencoder(nn.Module):
    """x -> code -> x again; with `code` smaller than x it is undercomplete.

    Shapes: x (N, in_channels, side, side) in [0, 1] -> the same; code (N, code).
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        """`encoder` gives (N, code), `decoder` takes it."""
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct x."""
        return self.decode(self.encode(x))

    def encode(self, x: Tensor) -> Tensor:
        """Return the code of x."""
        code: Tensor = self.encoder(x)
        return code

    def decode(self, code: Tensor) -> Tensor:
        """Return the image of a code."""
        image: Tensor = self.decoder(code)
        return image


class VariationalAutoencoder(nn.Module):
    """x -> distribution of a code -> x again, the code drawn in training and the mean in eval mode.

    Shapes: x (N, in_channels, side, side) in [0, 1] -> the same; code (N, code). An export is thereby
    deterministic; with `sample` it draws in eval mode too.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, *, sample: bool) -> None:
        """`encoder` gives (N, 2 code): the means, then the log variances; `decoder` takes (N, code)."""
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.sample = sample
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct x."""
        latent = self.encode(x)
        return self.decode(self.draw(latent) if self.training or self.sample else latent.mean)

    def encode(self, x: Tensor) -> Latent:
        """Return the distribution of x's code."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return Latent(mean, log_variance)

    def draw(self, latent: Latent) -> Tensor:
        """Draw a code (N, code), differentiable in the distribution's parameters."""
        return latent.mean + torch.exp(0.5 * latent.log_variance) * torch.randn_like(latent.mean)

    def decode(self, code: Tensor) -> Tensor:
        """Return the image of a code."""
        image: Tensor = self.decoder(code)
        return image


def reconstruction_loss(network: Autoencoder, x: Tensor, *, l1: float = 0.0, l2: float = 0.0) -> Tensor:
    """Mean squared error per image, plus l1 |code| (a sparse code) and l2 code^2 (a small one); a scalar."""
    code = network.encode(x)
    error = (network.decode(code) - x).square().flatten(1).sum(1)
    return (error + l1 * code.abs().sum(1) + l2 * code.square().sum(1)).mean()


def negative_elbo(network: VariationalAutoencoder, x: Tensor, *, beta: float = 1.0) -> Tensor:
    """Binary cross entropy per image plus beta times the divergence from a unit normal; a scalar."""
    latent = network.encode(x)
    error = nn.functional.binary_cross_entropy(network.decode(network.draw(latent)), x, reduction="none")
    divergence = 0.5 * (latent.mean.square() + latent.log_variance.exp() - 1 - latent.log_variance)
    return (error.flatten(1).sum(1) + beta * divergence.sum(1)).mean()


def se_autoencoder(
    *,
    in_channels: int = 1,
    side: int = 32,
    width: int = 16,
    code: int = 32,
    down: Down = "strided_conv",
    up: Up = "transposed_conv",
    **se: Unpack[SEArgs],
) -> Autoencoder:
    """Build an SE autoencoder for square images whose `side` is a multiple of 8."""
    return Autoencoder(*_halves(in_channels, side, width, code, code, down, up, se))


def se_vae(
    *,
    in_channels: int = 1,
    side: int = 32,
    width: int = 16,
    code: int = 16,
    down: Down = "strided_conv",
    up: Up = "transposed_conv",
    sample: bool = False,
    **se: Unpack[SEArgs],
) -> VariationalAutoencoder:
    """Build an SE VAE for square images whose `side` is a multiple of 8; deterministic in eval mode."""
    encoder, decoder = _halves(in_channels, side, width, 2 * code, code, down, up, se)
    return VariationalAutoencoder(encoder, decoder, sample=sample)


def _halves(  # noqa: PLR0917 - called twice, in the order of the networks' own arguments
    in_channels: int, side: int, width: int, encoded: int, code: int, down: str, up: str, se: SEArgs
) -> tuple[nn.Module, nn.Module]:
    """Return an encoder that ends in `encoded` numbers and a decoder that starts from `code`."""
    if side % 8:
        raise ValueError(f"side {side}: three halvings need a multiple of 8")
    options: SEArgs = {"ratio": 4}
    options.update(se)
    make = partial(SqueezeExcite, **options)
    widths = (width, 2 * width, 4 * width)
    features = widths[-1] * (side // 8) ** 2
    encoder: OrderedDict[str, nn.Module] = OrderedDict()
    encoder.update(conv_norm("0", in_channels, width, 3))
    channels = width
    for index, outputs in enumerate(widths, 1):
        encoder[f"down{index}"] = _down(channels, outputs, down)
        encoder[f"block{index}"] = _block(outputs, make)
        channels = outputs
    encoder["flatten"] = nn.Flatten()
    encoder["code"] = nn.Linear(features, encoded)

    decoder: OrderedDict[str, nn.Module] = OrderedDict()
    decoder["code"] = nn.Linear(code, features)
    decoder["map"] = ToMap(widths[-1], side // 8)
    for index, outputs in enumerate((*reversed(widths[:-1]), width), 1):
        decoder[f"up{index}"] = _up(channels, outputs, up)
        decoder[f"block{index}"] = _block(outputs, make)
        channels = outputs
    decoder["image"] = nn.Conv2d(channels, in_channels, 3, padding=1)
    decoder["pixels"] = nn.Sigmoid()
    return nn.Sequential(encoder), nn.Sequential(decoder)


def _block(channels: int, make: SEFactory) -> nn.Module:
    layers = conv_norm("1", channels, channels, 3)
    layers["se"] = make(channels)
    return nn.Sequential(layers)


def _down(inputs: int, outputs: int, kind: str) -> nn.Module:
    """Halve H and W: (N, inputs, H, W) -> (N, outputs, H/2, W/2)."""
    if kind == "strided_conv":
        return nn.Sequential(conv_norm("1", inputs, outputs, 3, stride=2))
    if kind == "space_to_depth":
        return nn.Sequential(OrderedDict(fold=nn.PixelUnshuffle(2), **conv_norm("1", 4 * inputs, outputs, 1)))
    pools = {"max_pool": nn.MaxPool2d(2), "average_pool": nn.AvgPool2d(2), "lp_pool": L2Pool()}
    if kind not in pools:
        raise ValueError(f"down '{kind}': one of {', '.join(get_args(Down))}")
    return nn.Sequential(OrderedDict(pool=pools[kind], **conv_norm("1", inputs, outputs, 1)))


def _up(inputs: int, outputs: int, kind: str) -> nn.Module:
    """Double H and W: (N, inputs, H, W) -> (N, outputs, 2H, 2W)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if kind == "transposed_conv":
        layers["conv1"] = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
    elif kind == "pixel_shuffle":
        layers["conv1"] = nn.Conv2d(inputs, 4 * outputs, 1, bias=False)
        layers["unfold"] = nn.PixelShuffle(2)
    elif kind in {"nearest", "bilinear"}:
        layers["grow"] = nn.Upsample(scale_factor=2, mode=kind)
        layers["conv1"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    else:
        raise ValueError(f"up '{kind}': one of {', '.join(get_args(Up))}")
    layers["norm1"] = nn.BatchNorm2d(outputs)
    layers["act1"] = nn.ReLU()
    return nn.Sequential(layers)
