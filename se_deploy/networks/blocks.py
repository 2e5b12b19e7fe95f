"""The squeeze-and-excitation block in every form that networks use, and the small parts around it.

Reference: J. Hu, L. Shen, G. Sun, "Squeeze-and-Excitation Networks", CVPR 2018 (arXiv:1709.01507).
Everything is written so that a trace holds no Python number computed from a tensor: both exporters of
PyTorch then keep the batch free.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

Form = Literal["conv", "linear"]
SEFactory = Callable[[int], nn.Module]
"""Channels of the tensor to recalibrate -> the block that does it."""
_CONVS: Mapping[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS: Mapping[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d,
}  # fmt: skip


class SEArgs(TypedDict, total=False):
    """What every network passes on to its SE blocks; the meaning is `SqueezeExcite`'s."""

    ratio: float
    divisor: int
    form: Form
    activation: str
    gate: str
    bias: bool
    norm: bool
    depth: int
    residual: bool
    axes: int


class OnePlusTanh(nn.Module):
    """1 + tanh(x), a gate that starts at 1 and lies in (0, 2); any shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the gate element by element."""
        return 1 + torch.tanh(x)


ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}
GATES: Mapping[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "hardsigmoid": nn.Hardsigmoid,
    "one_plus_tanh": OnePlusTanh,
}


def hidden_units(channels: int, ratio: float, divisor: int = 1) -> int:
    """Round channels/ratio to a multiple of `divisor`, never below one multiple nor below 90 % of it.

    With divisor 1 this is Hu et al.'s floor(C/r); with 8 it is MobileNet's rule (arXiv:1905.02244).
    """
    if divisor == 1:
        return max(1, int(channels / ratio))
    exact = channels / ratio
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * exact else rounded


class SqueezeExcite(nn.Module):
    """y = x * gate(fc_n(... act(fc_1(mean over H and W of x)))).

    Shapes: x, y (N, C, H, W); squeeze and gate (N, C, 1, 1); hidden (N, R, 1, 1) with R = C/ratio. `axes` is
    how many follow the channels: 2, or 1 of a signal (N, C, T) and 3 of a clip (N, C, T, H, W).
    `form` spells the learned layers as 1x1 convolutions or as Linear on (N, C): same function, and a
    state dict of one loads into the other. `depth` is the number of learned layers (2 in Hu et al.; 2N in
    deep excitation, the inner ones R to R). `norm` puts BatchNorm behind each layer but the last.
    `residual` gives x + x * gate.
    """

    def __init__(
        self,
        channels: int,
        *,
        ratio: float = 16,
        divisor: int = 1,
        hidden: int | None = None,
        form: Form = "conv",
        activation: str = "relu",
        gate: str = "sigmoid",
        bias: bool = True,
        norm: bool = False,
        depth: int = 2,
        residual: bool = False,
        axes: int = 2,
    ) -> None:
        """`hidden`: R itself, instead of `ratio` and `divisor`. Raises ValueError for unknown choices."""
        super().__init__()
        if depth < 2:  # noqa: PLR2004 - a squeeze with one learned layer has no bottleneck
            raise ValueError(f"depth {depth}: an excitation has at least two layers")
        if form not in ("conv", "linear"):
            raise ValueError(f"form '{form}': one of conv, linear")
        if axes not in _CONVS:
            raise ValueError(f"{axes} axes: one of {', '.join(map(str, _CONVS))}")
        self.axes = axes
        self.channels = channels
        self.hidden = hidden_units(channels, ratio, divisor) if hidden is None else hidden
        self.form = form
        self.residual = residual
        widths = [channels] + [self.hidden] * (depth - 1) + [channels]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index in range(1, depth + 1):
            with_bias = bias and not (norm and index < depth)
            layers[f"fc{index}"] = _layer(widths[index - 1], widths[index], form, axes, bias=with_bias)
            if index < depth:
                if norm:
                    layers[f"norm{index}"] = _norm(widths[index], form, axes)
                layers[f"act{index}"] = choose(ACTIVATIONS, activation, "activation")
        self.excitation = nn.Sequential(layers)
        self.gate = choose(GATES, gate, "gate")
        self.register_load_state_dict_pre_hook(_fit_weights)  # type: ignore[no-untyped-call]  # torch leaves it bare

    def forward(self, x: Tensor) -> Tensor:
        """Recalibrate the channels of x (N, C, H, W)."""
        gate: Tensor = self.gate(self.excite(x))
        if self.form == "linear":
            for axis in self._pooled:
                gate = gate.unsqueeze(axis)
        return x + x * gate if self.residual else x * gate

    def weight_of(self, layer: int) -> Tensor:
        """Return the weight of learned layer 1, 2, ..., in whichever form."""
        weight: Tensor = self.excitation.get_parameter(f"fc{layer}.weight")
        return weight

    def excite(self, x: Tensor) -> Tensor:
        """Compute what goes into the gate: (N, C, H, W) -> (N, C, 1, 1), or (N, C) in the linear form."""
        excited: Tensor = self.excitation(self.squeezed(x))
        return excited

    def squeezed(self, x: Tensor) -> Tensor:
        """Average over H and W: (N, C, H, W) -> (N, C, 1, 1), or (N, C) in the linear form."""
        return x.mean(self._pooled, keepdim=self.form == "conv")

    @property
    def _pooled(self) -> tuple[int, ...]:
        return tuple(range(2, 2 + self.axes))


def choose(table: Mapping[str, Callable[[], nn.Module]], name: str, what: str) -> nn.Module:
    """Make the module called `name`. Raises ValueError with the names there are."""
    if name not in table:
        raise ValueError(f"{what} '{name}': one of {', '.join(table)}")
    return table[name]()


def initialize(network: nn.Module) -> None:
    """Draw weights as He et al. do (arXiv:1502.01852); BatchNorm starts as the identity."""
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def conv_norm(
    name: str,
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: int | tuple[int, int] | None = None,
    groups: int = 1,
    activation: str | None = "relu",
    eps: float = 1e-5,
) -> OrderedDict[str, nn.Module]:
    """Name a convolution without bias, its BatchNorm and its activation: conv1, norm1, act1 for name "1".

    Shapes: (N, inputs, H, W) -> (N, outputs, H/stride, W/stride) with the padding left at k // 2.
    """
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    around = (size[0] // 2, size[1] // 2) if padding is None else padding
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers[f"conv{name}"] = nn.Conv2d(inputs, outputs, size, stride, around, groups=groups, bias=False)
    layers[f"norm{name}"] = nn.BatchNorm2d(outputs, eps=eps)
    if activation is not None:
        layers[f"act{name}"] = choose(ACTIVATIONS, activation, "activation")
    return layers


def _layer(inputs: int, outputs: int, form: Form, axes: int, *, bias: bool) -> nn.Module:
    if form == "linear":
        return nn.Linear(inputs, outputs, bias=bias)
    return _CONVS[axes](inputs, outputs, 1, bias=bias)


def _norm(features: int, form: Form, axes: int) -> nn.Module:
    return nn.BatchNorm1d(features) if form == "linear" else _NORMS[axes](features)


def _fit_weights(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Reshape the matrices of the other form, (R, C) or (R, C, 1, ...), to the one that `module` holds."""
    for name, parameter in module.named_parameters():
        value = state.get(prefix + name)
        if value is not None and matrix_shape(value) == matrix_shape(parameter):
            state[prefix + name] = value.reshape(parameter.shape)


def matrix_shape(value: Tensor) -> tuple[int, ...]:
    """Return (R, C) for (R, C), (R, C, 1), (R, C, 1, 1) and so on, any other shape as it is."""
    shape = tuple(value.shape)
    return shape[:2] if set(shape[2:]) == {1} else shape
