"""The search with a planner made of arithmetic: what it costs is known, so the choice is too."""

import dataclasses
import itertools
import json

import pytest
from planners import CountingPlanner, TablePlanner
from rewrites_graphs import assert_same
from rewrites_graphs import bottlenecks as network
from toy_rewrites import drop_identities

from se_deploy import graph
from se_deploy.errors import BadInput, BuildFailed
from se_deploy.passes.registry import Scope
from se_deploy.passes.rewrites import names, rewriters
from se_deploy.passes.search import (
    Choice,
    Goal,
    allowed,
    from_json,
    optimize,
    planned_bytes,
    replay,
    search,
    to_json,
)
from se_deploy.passes.search.attribution import CostAttribution
from se_deploy.se_blocks import detect

AVERAGE_AND_HOIST = ("squeeze-average-pool", "hoist-squeeze-1x1")


def run(model, planner=None, allowed=None, **goal):
    blocks = detect(model).blocks
    return search(model, blocks, planner or CountingPlanner(), allowed=allowed, goal=Goal(**goal))


def test_a_plan_costs_what_the_graph_behind_it_computes():
    """Layers that a rewrite makes have names that the graph as given does not know."""
    new = set()

    def cost(model):
        names = {node.name for node in model.graph}

        def of(plan):
            planned = {name for kernel in plan.layers for name in kernel.onnx_nodes}
            assert planned <= names
            new.update(planned - {node.name for node in given.graph})
            return planned_bytes(plan)

        return of

    given = network()
    assert run(given, cost=cost).choices
    assert new


def test_it_hoists_because_the_squeeze_reads_less():
    before = network()
    found = run(before)
    assert {c.rewrite for c in found.choices} >= {"hoist-squeeze-1x1"}
    assert {c.site for c in found.choices if c.rewrite == "hoist-squeeze-1x1"} == {"y1", "y2"}
    assert found.best.activation_bytes < found.baseline.activation_bytes
    assert found.best.kernels <= found.baseline.kernels
    assert_same(before, found.model)


def test_each_block_gets_a_form_of_its_own():
    found = run(network(), CountingPlanner(dislike=("AveragePool", "u1")), allowed=AVERAGE_AND_HOIST)
    assert {c.site for c in found.choices if c.rewrite == "hoist-squeeze-1x1"} == {"y1", "y2"}
    assert {c.site for c in found.choices if c.rewrite == "squeeze-average-pool"} == {"y2"}


def test_shares_add_up_to_the_plan():
    before = network()
    plan = CountingPlanner().plan(before)
    shares = CostAttribution(before, detect(before).se).shares(plan, planned_bytes)
    assert set(shares) == {"y1", "y2"}
    assert sum(share.kernels for share in shares.values()) == plan.kernels
    assert sum(share.value for share in shares.values()) == plan.activation_bytes
    assert shares["y1"] == shares["y2"]  # equal blocks: each from its first node to its last Relu


def test_shares_know_rewritten_nodes_and_kernels_without_nodes():
    before = network()
    done = replay(before, detect(before).blocks, [Choice("hoist-squeeze-1x1", "y2")]).model
    plan = CountingPlanner().plan(done)
    layers = tuple(dataclasses.replace(k, onnx_nodes=()) if k.kind == "Relu" else k for k in plan.layers)
    places = CostAttribution(before, detect(before).se)
    shares = places.shares(dataclasses.replace(plan, layers=layers), planned_bytes)
    assert shares == places.shares(plan, planned_bytes)
    assert shares["y2"].value < shares["y1"].value


def test_steps_are_a_waterfall_from_the_baseline_to_the_best():
    found = run(network())
    costs = [found.baseline, *(step.after for step in found.steps)]
    assert [step.before for step in found.steps] == costs[:-1]
    assert costs[-1] == found.best
    assert all(b.value <= a.value for a, b in itertools.pairwise(costs))


def test_it_is_deterministic():
    assert run(network()).choices == run(network()).choices


def test_the_budget_is_kept():
    planner = CountingPlanner()
    found = run(network(), planner, budget_plans=3)
    assert planner.asked == found.plans_used == 3
    assert run(network(), budget_plans=1).choices == ()


def test_the_time_limit_is_a_warning():
    assert run(network()).warnings == ()
    found = run(network(), seconds=1e-9, budget_plans=50)
    assert found.plans_used < 50
    assert any("time limit" in warning for warning in found.warnings)


def test_only_allowed_rewrites_are_taken():
    found = run(network(), allowed=("squeeze-average-pool",))
    assert {c.rewrite for c in found.choices} == {"squeeze-average-pool"}


def test_never_more_kernels_than_the_baseline():
    found = run(network(), baseline_kernels=0)
    assert found.choices == ()


def test_a_refused_graph_is_left_out_and_said():
    found = run(network(), CountingPlanner(refuse=("AveragePool",)))
    assert "squeeze-average-pool" not in {c.rewrite for c in found.choices}
    assert any("refused" in warning for warning in found.warnings)


def test_a_refused_baseline_is_an_error():
    with pytest.raises(BuildFailed):
        run(network(), CountingPlanner(refuse=("GlobalAveragePool",)))


def test_the_choice_can_be_replayed():
    before = network()
    found = run(before)
    text = to_json(found.choices)
    again = replay(before, detect(before).blocks, from_json(text))
    assert graph.to_bytes(again.model) == graph.to_bytes(found.model)
    assert tuple(sorted(again.applied)) == found.choices


def test_what_does_not_apply_is_left_out_of_applied():
    before = network()
    done = replay(
        before,
        detect(before).blocks,
        [Choice("gate-into-previous", "y1"), Choice("stem-space-to-depth", "no")],
    )
    assert done.applied == ()
    assert graph.to_bytes(done.model) == graph.to_bytes(before)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema": "other", "choices": []}',
        json.dumps({"schema": "se-deploy/rewrites/1", "choices": [["x", "y"]]}),
    ],
)
def test_a_bad_list_is_refused(text):
    with pytest.raises(BadInput):
        from_json(text)


def test_the_cost_is_an_argument():
    found = run(network(), cost=lambda _: lambda plan: float(plan.kernels))
    assert found.best.value == found.best.kernels


def test_rules_per_scope():
    computed = {"gate-into-previous", "gate-into-next", "gate-into-next-batched"}
    assert set(allowed(Scope.BY_PLAN)) == set(names())
    assert set(allowed(Scope.PORTABLE)) == {"drop-whole-slice", "dead-hidden-units"}
    more = {"hoist-squeeze-1x1", "gate-behind-pool"}
    assert set(allowed(Scope.LESS_WORK)) == set(allowed(Scope.PORTABLE)) | more
    assert not computed & set(allowed(Scope.BY_PLAN, constant_weights=True))
    assert allowed(Scope.LESS_WORK, ["gate-into-next"]) == ("gate-into-next",)
    with pytest.raises(BadInput, match="per image"):
        allowed(Scope.LESS_WORK, ["gate-into-next"], constant_weights=True)
    with pytest.raises(BadInput, match="no rewrite"):
        allowed(Scope.PORTABLE, ["squeeze"])
    assert allowed(Scope.BY_PLAN, []) == ()


@pytest.mark.parametrize("scope", [Scope.PORTABLE, Scope.LESS_WORK])
def test_without_a_planner_only_what_is_less_work(scope):
    before = network()
    found = optimize(before, detect(before).blocks, allowed(scope))
    assert {c.rewrite for c in found.choices} == (set() if scope is Scope.PORTABLE else {"hoist-squeeze-1x1"})
    assert found.best is None
    assert found.plans_used == 0
    assert_same(before, found.model)


def test_every_rewrite_has_a_name_and_an_idea():
    assert len(set(names())) == len(names()) == len(rewriters())
    assert all(rewriter.idea for rewriter in rewriters())


POOL, AVERAGE, NHWC = "GlobalAveragePool", "AveragePool", "Transpose"
SPELLINGS = ("squeeze-average-pool", "squeeze-nhwc-mean")


def test_a_mixture_that_breaks_the_limit_is_followed_by_one_that_keeps_it():
    """Shares forget a kernel between blocks 1 and 2; the second mixture makes room for it."""
    table = [
        {POOL: (10, 2), AVERAGE: (1, 3), NHWC: (9, 1)},
        {POOL: (10, 2), AVERAGE: (2, 3), NHWC: (4, 1)},
        {POOL: (1, 2), AVERAGE: (20, 3), NHWC: (6, 1)},  # room here costs more than in block 1
    ]
    found = run(network(count=3), TablePlanner(table, border=(AVERAGE, NHWC)), allowed=SPELLINGS)
    assert {(c.rewrite, c.site) for c in found.choices} == {
        ("squeeze-nhwc-mean", "y1"),
        ("squeeze-nhwc-mean", "y2"),
    }
    assert (found.best.value, found.best.kernels, found.baseline.kernels) == (14, 4, 6)


def test_kernels_that_a_site_saves_are_room_for_forms():
    drop_identities()
    table = [{POOL: (10, 2), AVERAGE: (1, 3)}] * 2
    names = ("squeeze-average-pool", "toy-drop-identity")
    before = network(between="Identity")
    without = run(before, TablePlanner(table), allowed=names[:1])
    assert without.choices == ()  # three kernels a block are more than there were
    found = run(before, TablePlanner(table), allowed=names)
    assert {c.rewrite for c in found.choices} == set(names)
    assert (found.best.value, found.best.kernels, found.baseline.kernels) == (2, 6, 6)
