"""Three SE networks that are fed other things than one image; rows of networks_table.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class Gate(nn.Module):
    """Squeeze over the axes `dims`, excite with a quarter of the channels."""

    def __init__(self, channels: int, conv: type[nn.Module], dims: tuple[int, ...]) -> None:
        """`conv`: the convolution of the network's own rank."""
        super().__init__()
        self.dims = dims
        self.reduce, self.expand = conv(channels, channels // 4, 1), conv(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, *) scaled channel by channel."""
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean(self.dims, keepdim=True)))))


class Speech(nn.Module):
    """Log-mel features (N, 80, T), T free -> 16 scores, by attentive statistics pooling."""

    def __init__(self) -> None:
        """Build with torch's own random weights."""
        super().__init__()
        self.first, self.gate = nn.Conv1d(80, 64, 5, padding=2), Gate(64, nn.Conv1d, (2,))
        self.second, self.attention = nn.Conv1d(64, 64, 3, padding=1), nn.Conv1d(64, 64, 1)
        self.head = nn.Linear(128, 16)

    def forward(self, feats: Tensor) -> Tensor:
        """Return scores (N, 16)."""
        x = torch.relu(self.second(self.gate(torch.relu(self.first(feats)))))
        weights = torch.softmax(self.attention(x), 2)
        mean = (weights * x).sum(2)
        deviation = ((weights * x * x).sum(2) - mean * mean).clamp(min=1e-4).sqrt()
        return self.head(torch.cat([mean, deviation], 1))


class Video(nn.Module):
    """A clip (N, 3, T, H, W) -> 8 scores."""

    def __init__(self) -> None:
        """Build with torch's own random weights."""
        super().__init__()
        self.first, self.gate = nn.Conv3d(3, 16, 3, padding=1), Gate(16, nn.Conv3d, (2, 3, 4))
        self.head = nn.Linear(16, 8)

    def forward(self, clip: Tensor) -> Tensor:
        """Return scores (N, 8)."""
        return self.head(self.gate(torch.relu(self.first(clip))).mean((2, 3, 4)))


class TwoInputs(nn.Module):
    """An image (N, 3, H, W) and seven numbers (N, 7) -> 8 scores."""

    def __init__(self) -> None:
        """Build with torch's own random weights."""
        super().__init__()
        self.first, self.gate = nn.Conv2d(3, 16, 3, padding=1), Gate(16, nn.Conv2d, (2, 3))
        self.numbers, self.head = nn.Linear(7, 16), nn.Linear(16, 8)

    def forward(self, image: Tensor, meta: Tensor) -> Tensor:
        """Return scores (N, 8)."""
        seen = self.gate(torch.relu(self.first(image))).mean((2, 3))
        return self.head(seen + self.numbers(meta))
