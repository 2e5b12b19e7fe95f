"""Nodes on constants that their operator cannot have: they stay as they are."""

from pathlib import Path

import pytest

from se_deploy import graph, se_blocks

FOUND = Path(__file__).parents[1] / "fuzz" / "found" / "onnx"


@pytest.mark.parametrize("name", ["range-of-weights"])
def test_what_cannot_be_computed_hides_no_census(name):
    assert se_blocks.detect(graph.load(FOUND / name)).se == ()
