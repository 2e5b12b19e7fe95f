"""Small SE networks of other inputs than one image, as the text of a user's file."""

NETS = """
import torch
from torch import nn


class SE(nn.Module):
    def __init__(self, c, conv, dims):
        super().__init__()
        self.dims, self.f1, self.f2 = dims, conv(c, 4, 1), conv(4, c, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.f2(torch.relu(self.f1(x.mean(self.dims, keepdim=True)))))


class Speech(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.se = nn.Conv1d(16, 32, 5, padding=2), SE(32, nn.Conv1d, (2,))
        self.b = nn.Conv1d(32, 8, 1)

    def forward(self, feats):
        return self.b(self.se(torch.relu(self.a(feats)))).mean(2)


class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.se = nn.Conv3d(3, 16, 3, padding=1), SE(16, nn.Conv3d, (2, 3, 4))
        self.b = nn.Linear(16, 8)

    def forward(self, clip):
        return self.b(self.se(torch.relu(self.a(clip))).mean((2, 3, 4)))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.se, self.m = nn.Conv2d(3, 16, 3, padding=1), SE(16, nn.Conv2d, (2, 3)), nn.Linear(7, 16)

    def forward(self, image, meta):
        return self.se(torch.relu(self.a(image))).mean((2, 3)) + self.m(meta)
"""
