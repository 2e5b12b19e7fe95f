"""State dicts of the same network under other names or in the other form of the SE layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.networks.blocks import SqueezeExcite, matrix_shape
from se_deploy.networks.resnet import ResNet, from_timm, is_timm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


def adapt(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape what `network` can take; leave everything else as it is, for the caller to judge.

    timm's `legacy_se*` weights get our names (see `resnet.from_timm`) where `network` is a ResNet of ours; an
    SE layer's matrix (R, C) becomes (R, C, 1, 1), or back, where the block is spelled in the other form.
    """
    known = from_timm(state) if isinstance(network, ResNet) and is_timm(state) else dict(state)
    for path, block in network.named_modules():
        if isinstance(block, SqueezeExcite):
            for name, parameter in block.named_parameters():
                key = f"{path}.{name}" if path else name
                value = known.get(key)
                if value is not None and matrix_shape(value) == matrix_shape(parameter):
                    known[key] = value.reshape(parameter.shape)
    return known
