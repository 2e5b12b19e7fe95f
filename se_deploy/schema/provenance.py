"""Where an ONNX file's weights came from, as its metadata says: answers of random weights mean nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

NETWORK_KEY = "se_deploy.network"
WEIGHTS_KEY = "se_deploy.weights"
_RANDOM = "random, seed "


def random_weights(seed: int) -> str:
    """Return the words for weights that were drawn, not trained."""
    return f"{_RANDOM}{seed}"


def are_random(weights: str | None) -> bool:
    """Whether `weights`, as metadata or a network say of them, were drawn; False where nothing is said."""
    return weights is not None and weights.startswith(_RANDOM)


def weights_of(metadata: Mapping[str, str]) -> str | None:
    """Return what a file's metadata says of its weights; None where it says nothing."""
    return metadata.get(WEIGHTS_KEY)
