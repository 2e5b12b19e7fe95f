"""Passes are checked in full here, by the ONNX specification; toy rewrites go when their test ends."""

import pytest

from se_deploy import graph
from se_deploy.passes import registry, rewrites


@pytest.fixture(autouse=True)
def _checked_in_full(monkeypatch):
    structure = graph.check_structure

    def in_full(model, *, after):
        structure(model, after=after)
        graph.check(model)

    monkeypatch.setattr(graph, "check_structure", in_full)


@pytest.fixture(autouse=True)
def _registry_as_it_was():
    before = set(rewrites.names())
    yield
    for name in set(registry._registered) - before:
        registry.forget(name)
