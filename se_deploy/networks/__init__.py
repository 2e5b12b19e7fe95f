"""The SE networks that ship: plain torch, importable as `se_deploy:NAME`; knows nothing of deployment."""

from __future__ import annotations

from se_deploy.networks.accounting import Description, describe
from se_deploy.networks.adaptive import AdaptiveSE, FrozenRatio, freeze
from se_deploy.networks.blocks import SqueezeExcite
from se_deploy.networks.foreign import adapt
from se_deploy.networks.registry import NETWORKS, Entry

__all__ = [
    "NETWORKS",
    "AdaptiveSE",
    "Description",
    "Entry",
    "FrozenRatio",
    "SqueezeExcite",
    "adapt",
    "describe",
    "freeze",
]
