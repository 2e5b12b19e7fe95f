"""A rewrite is one file: what registers itself is searched, applied, saved and reported."""

import json

import pytest
from planners import CountingPlanner
from rewrites_graphs import assert_same, bottlenecks
from toy_rewrites import clip_first_block, drop_identities

from se_deploy import graph, se_blocks
from se_deploy.cli import main
from se_deploy.passes import rewrites, search
from se_deploy.passes.registry import Refusal, Scope


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


@pytest.mark.slow
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


def test_the_reason_is_the_graphs_and_not_that_another_rewrite_came_first():
    before = bottlenecks(between="Identity", batch=1)
    blocks = se_blocks.detect(before).se
    names = ("hoist-squeeze-kxk", "squeeze-average-pool")
    found = search.optimize(before, blocks, names)
    assert {c.rewrite for c in found.choices} == {"squeeze-average-pool"}
    assert [no.rewrite for no in found.refused] == ["hoist-squeeze-kxk"] * 2
    assert all("1x1 kernel" in no.reason for no in found.refused)
