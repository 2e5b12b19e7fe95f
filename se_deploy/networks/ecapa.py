"""ECAPA-TDNN: speaker embeddings from speech of any length, with SE-Res2Net blocks in one dimension.

Reference: B. Desplanques, J. Thienpondt, K. Demuynck, "ECAPA-TDNN: Emphasized Channel Attention, Propagation
and Aggregation in TDNN Based Speaker Verification", Interspeech 2020 (arXiv:2005.07143); the Res2Net module
is S.-H. Gao et al.'s, arXiv:1904.01169. Two things that the paper leaves open are as most open
implementations have them: the non-linearity of the attention is tanh, and the variance is kept above 1e-4.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import nn

from se_deploy.networks.blocks import SqueezeExcite, initialize

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

_DILATIONS = (2, 3, 4)  # of the three SE-Res2Blocks, figure 2 of the paper
_KERNEL = 3
_FIRST_KERNEL = 5
_LEAST_VARIANCE = 1e-4  # the square root has no gradient at 0, and FP16 no number much below


class _Options(TypedDict, total=False):
    """The options of `ecapa_tdnn`."""

    in_channels: int
    channels: int
    scale: int
    squeezed: int
    aggregated: int
    attention: int
    embedding: int


def _frame_layer(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolve over time, ReLU, BatchNorm, in the paper's order: (N, inputs, T) -> (N, outputs, T)."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv1d(inputs, outputs, kernel, dilation=dilation, padding=dilation * (kernel // 2)),
            act=nn.ReLU(),
            norm=nn.BatchNorm1d(outputs),
        )
    )


class Res2Layer(nn.Module):
    """`scale` groups of channels in a row: each but the first is convolved with the one before added to it.

    Shapes: x, y (N, C, T), C a multiple of `scale`.
    """

    def __init__(self, channels: int, scale: int, dilation: int) -> None:
        """Raises ValueError where the channels do not divide."""
        super().__init__()
        if channels % scale:
            raise ValueError(f"{channels} channels: not a multiple of the scale, {scale}")
        self.scale = scale
        width = channels // scale
        self.layers = nn.ModuleList(_frame_layer(width, width, _KERNEL, dilation) for _ in range(1, scale))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve group after group."""
        first, *others = torch.chunk(x, self.scale, 1)
        made = [first]
        for layer, part in zip(self.layers, others, strict=True):
            made.append(layer(part if len(made) == 1 else part + made[-1]))
        return torch.cat(made, 1)


class SERes2Block(nn.Module):
    """x + SE(frame layer(Res2(frame layer(x)))), figure 2 of the paper; x, y (N, C, T)."""

    def __init__(self, channels: int, scale: int, dilation: int, squeezed: int) -> None:
        """`squeezed`: hidden units of the SE block."""
        super().__init__()
        self.branch = nn.Sequential(
            OrderedDict(
                before=_frame_layer(channels, channels),
                res2=Res2Layer(channels, scale, dilation),
                behind=_frame_layer(channels, channels),
                se=SqueezeExcite(channels, hidden=squeezed, axes=1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to x."""
        y: Tensor = x + self.branch(x)
        return y


class AttentiveStatistics(nn.Module):
    """Mean and standard deviation over time, each frame weighed by itself for each channel.

    The weights see the frame and the whole recording's mean and deviation (section 3.1 of the paper).
    Shapes: x (N, C, T) -> (N, 2 C).
    """

    def __init__(self, channels: int, hidden: int) -> None:
        """`hidden`: units of the attention."""
        super().__init__()
        self.hidden = nn.Conv1d(3 * channels, hidden, 1)
        self.act = nn.Tanh()
        self.score = nn.Conv1d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pool x over time."""
        mean = x.mean(2, keepdim=True)
        deviation = _root((x - mean).square().mean(2, keepdim=True))
        seen = torch.cat([x, mean.expand_as(x), deviation.expand_as(x)], 1)
        weights = torch.softmax(self.score(self.act(self.hidden(seen))), 2)
        mean = (weights * x).sum(2, keepdim=True)
        deviation = _root((weights * (x - mean).square()).sum(2, keepdim=True))
        return torch.cat([mean, deviation], 1).flatten(1)


class ECAPATDNN(nn.Module):
    """Frame layers whose outputs are summed on the way and joined at the end, then attentive statistics.

    Shapes: x (N, in_channels, T), T free -> embedding (N, embedding).
    """

    def __init__(
        self,
        *,
        in_channels: int = 80,
        channels: int = 512,
        scale: int = 8,
        squeezed: int = 128,
        aggregated: int = 1536,
        attention: int = 128,
        embedding: int = 192,
    ) -> None:
        """`in_channels`: mel features; `squeezed`: hidden units of SE; `aggregated`: channels of the pool."""
        super().__init__()
        self.first = _frame_layer(in_channels, channels, _FIRST_KERNEL)
        self.blocks = nn.ModuleList(
            SERes2Block(channels, scale, dilation, squeezed) for dilation in _DILATIONS
        )
        self.aggregate = nn.Sequential(
            OrderedDict(conv=nn.Conv1d(len(_DILATIONS) * channels, aggregated, 1), act=nn.ReLU())
        )
        self.pool = AttentiveStatistics(aggregated, attention)
        self.norm = nn.BatchNorm1d(2 * aggregated)
        self.head = nn.Linear(2 * aggregated, embedding)
        self.head_norm = nn.BatchNorm1d(embedding)
        initialize(self)

    def forward(self, feats: Tensor) -> Tensor:
        """Embed features (N, in_channels, T)."""
        summed = self.first(feats)
        outputs = []
        for block in self.blocks:
            y = block(summed)
            outputs.append(y)
            summed = summed + y
        pooled = self.norm(self.pool(self.aggregate(torch.cat(outputs, 1))))
        embedding: Tensor = self.head_norm(self.head(pooled))
        return embedding


def ecapa_tdnn(**options: Unpack[_Options]) -> ECAPATDNN:
    """ECAPA-TDNN with C = 512: 6.2 million parameters in the paper's table 1."""
    return ECAPATDNN(**options)


def ecapa_tdnn_1024(**options: Unpack[_Options]) -> ECAPATDNN:
    """ECAPA-TDNN with C = 1024: 14.7 million parameters in the paper's table 1."""
    merged: _Options = {"channels": 1024}
    merged.update(options)
    return ECAPATDNN(**merged)


def _root(variance: Tensor) -> Tensor:
    return variance.clamp(min=_LEAST_VARIANCE).sqrt()
