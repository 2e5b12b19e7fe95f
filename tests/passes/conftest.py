"""Passes are checked in full here: the ONNX specification after each one, not the structure alone."""

import pytest

from se_deploy import graph


@pytest.fixture(autouse=True)
def _checked_in_full(monkeypatch):
    structure = graph.check_structure

    def in_full(model, *, after):
        structure(model, after=after)
        graph.check(model)

    monkeypatch.setattr(graph, "check_structure", in_full)
