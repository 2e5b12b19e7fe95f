"""Counts what a network costs, and what its SE blocks add according to the published formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from se_deploy.networks.blocks import SqueezeExcite
from se_deploy.networks.registry import NETWORKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Stage:
    """`blocks` SE blocks over tensors of `channels` channels."""

    blocks: int
    channels: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What one sample costs: convolutions and matrix products, and each SE block's squeeze and scale."""

    params: int
    macs: int
    blocks: int  # SE blocks


@dataclass(frozen=True, slots=True)
class Description:
    """A network that ships, as `se-deploy networks` lists it."""

    name: str
    params: int
    macs: int  # for one sample of `input_size`
    blocks: int
    input_size: tuple[int, ...]  # (C, H, W), (C, T) of a signal
    reference: str


def describe(name: str) -> Description:
    """Count the network `name` at its input size, without making any of its weights.

    Raises: KeyError where no such network ships.
    """
    entry = NETWORKS[name]
    with torch.device("meta"):
        network = entry.build()
    spent = count(network, entry.input_size)
    return Description(name, spent.params, spent.macs, spent.blocks, entry.input_size, entry.reference)


def count(network: nn.Module, input_size: tuple[int, ...]) -> Cost:
    """Count parameters, multiply-accumulates for one image (C, H, W) or signal (C, T), and SE blocks.

    As in Hu et al., table 2: a squeeze adds each value once and a scale multiplies it once; activations,
    BatchNorm and pools cost nothing.
    """
    blocks = [module for module in network.modules() if isinstance(module, SqueezeExcite)]
    touched = 0

    def watch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal touched
        touched += 2 * math.prod(inputs[0].shape)

    hooks = [block.register_forward_pre_hook(watch) for block in blocks]
    training = network.training
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, *input_size, device=device))
    network.train(training)
    for hook in hooks:
        hook.remove()
    params = sum(parameter.numel() for parameter in network.parameters())
    return Cost(params, counter.get_total_flops() // 2 + touched, len(blocks))


def extra_parameters(stages: Sequence[Stage], ratio: float) -> float:
    """Return 2/r sum(N_s C_s^2): what SE blocks of two layers add, without biases (Hu et al., equation 5)."""
    return 2 / ratio * sum(stage.blocks * stage.channels**2 for stage in stages)


def deep_extra_parameters(stages: Sequence[Stage], ratio: float, layers: int) -> float:
    """Return the sum of N_s ((n - 2) C_s^2/r^2 + 2 C_s^2/r): what blocks of n layers add, without biases.

    With n = 2 it is `extra_parameters`. Raises: ValueError for less than two layers.
    """
    if layers < 2:  # noqa: PLR2004 - into the bottleneck and out of it
        raise ValueError(f"{layers} layers: an excitation has at least two")
    per_unit = (layers - 2) / ratio**2 + 2 / ratio
    return per_unit * sum(stage.blocks * stage.channels**2 for stage in stages)


def stages(network: nn.Module) -> tuple[Stage, ...]:
    """Return the SE blocks of `network` by their channels, in the order of first use."""
    channels = [module.channels for module in network.modules() if isinstance(module, SqueezeExcite)]
    return tuple(Stage(channels.count(width), width) for width in dict.fromkeys(channels))


def excitation_weights(network: nn.Module) -> int:
    """Count the weights of every SE block's learned layers, without biases and norms."""
    return sum(
        layer.weight.numel()
        for block in network.modules()
        if isinstance(block, SqueezeExcite)
        for layer in block.excitation.children()
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))
    )
