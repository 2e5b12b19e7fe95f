"""A rewrite is one file: what registers itself is searched, applied, saved and reported."""

import json
from dataclasses import dataclass

import pytest
from planners import CountingPlanner
from rewrites_graphs import assert_same, bottlenecks

from se_deploy import graph, se_blocks
from se_deploy.cli import main
from se_deploy.passes import registry, rewrites, search
from se_deploy.passes.registry import Refusal, Refused, Scope, Tried, every, every_block, rewrite


@pytest.fixture(autouse=True)
def registered():
    """Leave the registry as it was."""
    before = set(rewrites.names())
    yield
    for name in set(registry._registered) - before:
        registry.forget(name)


@dataclass(frozen=True, slots=True)
class Toy:
    site: str
    node: object
    shape: tuple = ()


def drop_identities(*, scope=Scope.BY_PLAN, after=(), tried=None):
    """Register a rewrite about nodes: an Identity is left out."""

    def match(model, node):
        del model
        if node.outputs[0].is_graph_output():
            return Refused("it names an output")
        return Toy(node.outputs[0].name, node)

    @rewrite(
        name="toy-drop-identity", idea="no identities", where=every("Identity"), match=match, scope=scope,
        after=after, tried=tried or Tried(turn=1),
    )  # fmt: skip
    def drop_identity(model, found):
        del model
        found.node.outputs[0].replace_all_uses_with(found.node.inputs[0])


def clip_first_block():
    """Register a rewrite about blocks: the first one's Relu is a Clip, any other is refused."""

    def match(model, block):
        if block.output != "y1":
            return Refused("a toy is for the first block")
        relu = next((n for n in model.graph if n.op_type == "Relu" and n.outputs[0].name == "a1"), None)
        return Refused("it has a Clip already") if relu is None else Toy(block.output, relu)

    @rewrite(name="toy-clip", idea="Relu as Clip", where=every_block, match=match, tried=Tried(forms=((),)))
    def clip(model, found):
        low = graph.initializer(model, "low", graph.np.zeros((), graph.np.float32))
        node = graph.ir.node("Clip", [found.node.inputs[0], low])
        found.node.graph.insert_before(found.node, node)
        graph.replace(found.node.outputs[0], node.outputs[0])


def test_a_toy_is_searched_and_reported():
    drop_identities()
    before = bottlenecks(between="Identity")
    blocks = se_blocks.detect(before).se
    found = search.search(before, blocks, CountingPlanner())
    assert {c.site for c in found.choices if c.rewrite == "toy-drop-identity"} == {"i1", "i2"}
    assert any("toy-drop-identity" in step.rewrite for step in found.steps)
    assert dict(found.counts)["toy-drop-identity"] == 2
    assert_same(before, found.model)
    again = search.replay(before, blocks, search.from_json(search.to_json(found.choices)))
    assert tuple(sorted(again.applied)) == found.choices


def test_a_form_of_a_block_is_searched_and_its_refusals_are_reported():
    clip_first_block()
    before = bottlenecks()
    found = search.search(
        before, se_blocks.detect(before).se, CountingPlanner(dislike=("Relu", "h1")), allowed=("toy-clip",)
    )
    assert found.choices == (search.Choice("toy-clip", "y1"),)
    assert found.refused == (Refusal("toy-clip", "y2", "a toy is for the first block"),)


def test_what_became_possible_is_not_called_refused():
    before = bottlenecks(batch=1)
    blocks = se_blocks.detect(before).se
    names = ("hoist-squeeze-1x1", "gate-into-previous")
    plain = search.optimize(before, blocks, names[1:])
    assert [(no.rewrite, no.site) for no in plain.refused] == [(names[1], "y1"), (names[1], "y2")]
    assert all("unless hoisted" in no.reason for no in plain.refused)
    assert search.optimize(before, blocks, names).refused == ()


def test_export_tells_of_a_toy(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip_first_block()
    graph.save(bottlenecks(), tmp_path / "net.onnx")
    words = ["export", "net.onnx", "-o", "out.onnx", "--rewrites", "toy-clip"]
    assert not main([*words, "--json", "-q"], standalone_mode=False)
    result = json.loads(capsys.readouterr().out)
    assert ["toy-clip", 1] in result["rewrites"]
    assert result["refused"] == [["toy-clip", "y2", "a toy is for the first block"]]
    assert not main([*words, "-v", "--overwrite"], standalone_mode=False)
    assert "a toy is for the first block" in capsys.readouterr().out
    assert not main([*words, "--overwrite"], standalone_mode=False)
    assert "a toy is for the first block" not in capsys.readouterr().out


def test_a_scope_allows_a_toy():
    drop_identities(scope=Scope.PORTABLE)
    assert "toy-drop-identity" in search.allowed(Scope.PORTABLE)


def test_the_order_comes_from_what_a_rewrite_builds_on():
    drop_identities(after=("stem-space-to-depth",))
    names = rewrites.names()
    assert names.index("toy-drop-identity") > names.index("stem-space-to-depth")
    for rewriter in rewrites.rewriters():
        assert all(names.index(name) < names.index(rewriter.name) for name in rewriter.after)
    first = [r.tried.first for r in rewrites.rewriters()]
    assert first == sorted(first, reverse=True)


def test_forms_name_rewrites_that_there_are():
    for rewriter in rewrites.rewriters():
        assert {name for form in rewriter.tried.forms for name in form} <= set(rewrites.names())


@pytest.mark.parametrize("after", [("no-such-rewrite",), ("toy-drop-identity",)])
def test_an_order_that_cannot_be_is_a_defect(after):
    drop_identities(after=after)
    with pytest.raises(ValueError, match="toy-drop-identity"):
        rewrites.names()


def test_a_name_is_taken_once():
    drop_identities()
    with pytest.raises(ValueError, match="already"):
        drop_identities()


def test_every_refusal_has_a_reason():
    before = bottlenecks()
    blocks = se_blocks.detect(before).se
    for rewriter in rewrites.rewriters():
        assert all(no.reason and no.site for no in rewriter.refusals(before, blocks))
