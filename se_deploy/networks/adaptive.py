"""The SE block whose reduction ratio is learned, and what turns it into a static one.

A number per block, learned with the weights, says how many of its hidden units are used. The units are
ordered: unit i counts with a weight of 1 well below the width, 0 above it and a ramp between, so that the
width has a gradient; rounding it to an integer would have none and would freeze a constant into a trace.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, cast

import torch
from torch import nn

from se_deploy.networks.blocks import Form, SqueezeExcite

if TYPE_CHECKING:
    from torch import Tensor

_START = 2.0  # sigmoid(2) = 0.88: nearly every unit is used, and the gradient is not yet flat


class AdaptiveArgs(TypedDict, total=False):
    """What a network passes on to its adaptive blocks; the meaning is `AdaptiveSE`'s."""

    ratio: float
    divisor: int
    softness: float
    form: Form
    activation: str
    gate: str
    bias: bool
    norm: bool
    residual: bool


@dataclass(frozen=True, slots=True)
class FrozenRatio:
    """What `freeze` made of one adaptive block."""

    module: str  # path in the network, as in named_modules()
    channels: int
    hidden: int  # units that are left
    available: int  # units that there were to choose from
    ratio: float  # channels / hidden


class OrderedMask(nn.Module):
    """Weighs hidden unit i with clamp((width - i) / softness, 0, 1), width = 1 + (R - 1) sigmoid(theta).

    Shapes: x (N, R, 1, 1) or (N, R) -> the same. The first unit is always used.
    """

    def __init__(self, hidden: int, softness: float) -> None:
        """`softness`: over how many units the weight falls from 1 to 0."""
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(_START))
        self.hidden = hidden
        self.softness = softness

    def width(self) -> Tensor:
        """Return the number of units in use, a scalar in [1, R] with a gradient."""
        return 1 + (self.hidden - 1) * torch.sigmoid(self.theta)

    def weights(self) -> Tensor:
        """Return the weight of each unit, (R,): falling from 1 to 0."""
        order = torch.arange(self.hidden, device=self.theta.device, dtype=self.theta.dtype)
        return ((self.width() - order) / self.softness).clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the units of x."""
        weights = self.weights()
        return x * (weights.view(1, -1, 1, 1) if x.dim() == 4 else weights)  # noqa: PLR2004 - (N, R, 1, 1)


class AdaptiveSE(SqueezeExcite):
    """A two-layer SE block that learns how many of its hidden units it needs.

    Shapes: x, y (N, C, H, W); hidden (N, R, 1, 1) with R = C/ratio the most that it may use.
    """

    def __init__(
        self,
        channels: int,
        *,
        ratio: float = 2,
        divisor: int = 1,
        softness: float = 2,
        form: Form = "conv",
        activation: str = "relu",
        gate: str = "sigmoid",
        bias: bool = True,
        norm: bool = False,
        residual: bool = False,
    ) -> None:
        """`softness`: width of the mask's ramp in units; the rest as in `SqueezeExcite`."""
        super().__init__(
            channels,
            ratio=ratio,
            divisor=divisor,
            form=form,
            activation=activation,
            gate=gate,
            bias=bias,
            norm=norm,
            residual=residual,
        )
        self.mask = OrderedMask(self.hidden, softness)

    def excite(self, x: Tensor) -> Tensor:
        """Compute what goes into the gate, the hidden units weighed by their order."""
        hidden = self.squeezed(x)
        for name, layer in self.excitation.named_children():
            if name == "fc2":
                hidden = self.mask(hidden)
            hidden = layer(hidden)
        return hidden

    @torch.no_grad()
    def frozen(self) -> SqueezeExcite:
        """Return the static block with only the units that count, of equal output up to rounding.

        fc2 (weights * act(fc1)) = (fc2 weights) act(fc1), and a unit of weight 0 adds nothing.
        """
        weights = self.mask.weights()
        kept = math.ceil(self.mask.width().item())
        static = SqueezeExcite(self.channels, hidden=kept, form=self.form, residual=self.residual)
        layers = OrderedDict(self.excitation.named_children())
        layers["fc1"] = _rows(layers["fc1"], kept)
        layers["fc2"] = _columns(layers["fc2"], weights[:kept])
        if "norm1" in layers:
            layers["norm1"] = _units(layers["norm1"], kept)
        static.excitation = nn.Sequential(layers)
        static.gate = self.gate
        return static.train(self.training)


def cost(network: nn.Module) -> Tensor:
    """Return the share of their hidden units that the adaptive blocks use, averaged over the blocks.

    A scalar in (0, 1] with a gradient: added to the loss with a weight, it says what a unit must be worth.
    Raises ValueError where the network has no adaptive block.
    """
    shares = [
        module.mask.width() / module.hidden for module in network.modules() if isinstance(module, AdaptiveSE)
    ]
    if not shares:
        raise ValueError("the network has no adaptive block: there is no width to pay for")
    return torch.stack(shares).mean()


def freeze(network: nn.Module) -> tuple[FrozenRatio, ...]:
    """Replace every adaptive block inside `network`, in place, by a static one of equal output.

    Raises TypeError where `network` is itself an adaptive block: `frozen()` gives its replacement.
    """
    if isinstance(network, AdaptiveSE):
        raise TypeError("a block cannot replace itself; take what its frozen() gives")
    found = [(path, block) for path, block in network.named_modules() if isinstance(block, AdaptiveSE)]
    ratios = []
    for path, block in found:
        static = block.frozen()
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, static)
        ratios.append(
            FrozenRatio(path, block.channels, static.hidden, block.hidden, block.channels / static.hidden)
        )
    return tuple(ratios)


def _rows(layer: nn.Module, count: int) -> nn.Module:
    weight = cast("Tensor", layer.weight)[:count]
    bias = cast("Tensor | None", layer.bias)
    return _with_weights(layer, weight, None if bias is None else bias[:count])


def _columns(layer: nn.Module, weights: Tensor) -> nn.Module:
    weight = cast("Tensor", layer.weight)[:, : len(weights)]
    scaled = weight * weights.view(1, -1, *[1] * (weight.dim() - 2))
    return _with_weights(layer, scaled, cast("Tensor | None", layer.bias))


def _with_weights(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    outputs, inputs = weight.shape[:2]
    made: nn.Conv2d | nn.Linear = (
        nn.Conv2d(inputs, outputs, 1, bias=bias is not None)
        if isinstance(layer, nn.Conv2d)
        else nn.Linear(inputs, outputs, bias=bias is not None)
    )
    made.weight = nn.Parameter(weight.clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.clone())
    return made


def _units(norm: nn.Module, count: int) -> nn.Module:
    made = type(norm)(count).to(cast("Tensor", norm.weight))
    made.load_state_dict(
        {key: value[:count] if value.dim() else value for key, value in norm.state_dict().items()}
    )
    return made
