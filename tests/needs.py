"""What an install may be without: marks for the tests whose subject it is."""

import importlib.util

import pytest


def _installed(module):
    return importlib.util.find_spec(module) is not None


TORCH = pytest.mark.skipif(not _installed("torch"), reason="torch is not installed: the extra `torch`")
RTX = pytest.mark.skipif(
    not _installed("tensorrt_rtx"), reason="TensorRT-RTX is not installed: the extra `rtx`"
)
PLOTS = pytest.mark.skipif(
    not _installed("matplotlib"), reason="matplotlib is not installed: the extra `report`"
)
