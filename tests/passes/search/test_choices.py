"""What the search decides, by planners whose costs leave one right answer."""

import dataclasses

import numpy as np
import pytest
from planners import CountingPlanner, OperatorPlanner, SitePlanner, TablePlanner
from rewrites_graphs import bottlenecks, build, se
from toy_rewrites import clip_first_block, drop_identities, refuse_blocks, respell, take_in_outputs

from se_deploy import graph
from se_deploy.errors import BuildFailed
from se_deploy.passes.registry import Site, Tried
from se_deploy.passes.rewrites import rewriters
from se_deploy.passes.search import Goal, optimize, plan_search, planned_bytes, search
from se_deploy.passes.search.attribution import CostAttribution
from se_deploy.se_blocks import detect

POOL, AVERAGE, NHWC = "GlobalAveragePool", "AveragePool", "Transpose"
SPELLINGS = ("squeeze-average-pool", "squeeze-nhwc-mean")
TOY, OTHER = "toy-drop-identity", "toy-other"


def run(model, planner, allowed, **goal):
    return search(model, detect(model).se, planner, allowed=allowed, goal=Goal(**goal))


def chosen(found):
    return {(choice.rewrite, choice.site) for choice in found.choices}


def waterfall(found):
    return [(step.rewrite, step.sites, step.after.value) for step in found.steps]


# ---- forms of blocks


def test_each_kind_is_a_step_of_its_own():
    table = [
        {POOL: (10, 3), AVERAGE: (1, 2), NHWC: (9, 3)},
        {POOL: (10, 3), AVERAGE: (9, 3), NHWC: (2, 2)},
    ]
    found = run(bottlenecks(), TablePlanner(table), SPELLINGS)
    assert waterfall(found) == [
        ("squeeze-average-pool", ("y1",), 11),
        ("squeeze-nhwc-mean", ("y2",), 3),
    ]


def test_one_form_everywhere_is_taken_where_no_mixture_keeps_the_limit():
    table = [
        {POOL: (10, 2), AVERAGE: (1, 2), NHWC: (5, 2)},
        {POOL: (10, 2), AVERAGE: (9, 2), NHWC: (1, 2)},
    ]
    found = run(bottlenecks(), TablePlanner(table, border=(AVERAGE, NHWC)), SPELLINGS)
    assert chosen(found) == {("squeeze-nhwc-mean", "y1"), ("squeeze-nhwc-mean", "y2")}
    assert (found.best.value, found.best.kernels) == (6, 4)


@pytest.mark.parametrize(("second", "kept"), [(2, "y1"), (0, "y2")])
def test_the_form_that_saves_least_per_kernel_is_given_back(second, kept):
    """Two blocks want two kernels more, and there is room for one of them: 9 bytes against 8, or 10."""
    table = [
        {POOL: (10, 2), AVERAGE: (1, 4), NHWC: (30, 9)},
        {POOL: (10, 2), AVERAGE: (second, 4), NHWC: (30, 9)},
        {POOL: (10, 2), AVERAGE: (20, 9), NHWC: (9, 1)},
    ]
    found = run(bottlenecks(count=3), TablePlanner(table), SPELLINGS, baseline_kernels=7)
    assert chosen(found) == {("squeeze-average-pool", kept), ("squeeze-nhwc-mean", "y3")}


def test_a_mixture_with_fewer_kernels_than_the_limit_is_taken():
    """4 kernels are allowed, and 3 are the best: with 5, the first block would want all of them."""
    table = [
        {POOL: (10, 2), AVERAGE: (5, 1), NHWC: (1, 4)},
        {POOL: (10, 2), AVERAGE: (20, 2), NHWC: (4, 2)},
    ]
    found = run(bottlenecks(), TablePlanner(table), SPELLINGS)
    assert waterfall(found) == [(SPELLINGS[0], ("y1",), 15), (SPELLINGS[1], ("y2",), 9)]
    assert (found.best.value, found.best.kernels) == (9, 3)


def test_a_kind_builds_on_no_other():
    moves, kinds = plan_search._moves(), plan_search._kinds()
    built = [move for move in moves if move not in kinds]
    assert built, "the test shows something"
    assert all(any(set(kind) < set(move) for kind in kinds) for move in built)
    assert not any(set(one) < set(other) for one in kinds for other in kinds)


def test_forms_behind_a_refused_one_are_tried():
    class Refusing(TablePlanner):
        def plan(self, model):
            if AVERAGE in graph.ops(model):
                raise BuildFailed("no such kernel", hint="-")
            return super().plan(model)

    table = [{POOL: (10, 2), AVERAGE: (1, 2), NHWC: (5, 2)}] * 2
    found = run(bottlenecks(), Refusing(table), SPELLINGS)
    assert chosen(found) == {("squeeze-nhwc-mean", "y1"), ("squeeze-nhwc-mean", "y2")}


def idle_unit():
    """A block with a hidden unit that never changes."""
    body, shapes = se(8, 5)
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["f1"][2] = 0
    return build("float[N,8,4,4] u", "float[N,8,4,4] z", f"x = Relu(u)\n{body}z = Relu(y)", arrays)


def test_what_is_less_work_comes_first_unless_it_costs_more():
    found = run(idle_unit(), CountingPlanner(), ("dead-hidden-units",))
    assert chosen(found) == {("dead-hidden-units", "y")}
    assert [(step.rewrite, step.sites) for step in found.steps] == [("dead-hidden-units", ("y",))]
    dearer = run(
        idle_unit(),
        CountingPlanner(),
        ("dead-hidden-units",),
        cost=lambda _: lambda plan: -planned_bytes(plan),
    )
    assert dearer.choices == ()
    assert dearer.steps == ()


def test_gates_in_weights_are_warned_of_where_they_are_taken():
    def maps_scaled(plan):
        return sum(layer.kind == "Mul" and layer.outputs[0].dims[-1] > 1 for layer in plan.layers)

    names = ("hoist-squeeze-1x1", "gate-into-previous")
    taken = run(
        bottlenecks(batch=1), CountingPlanner(), names, cost=lambda _: maps_scaled, baseline_kernels=99
    )
    assert "gate-into-previous" in {choice.rewrite for choice in taken.choices}
    assert ["multiplied into weights at run time" in warning for warning in taken.warnings] == [True]
    assert run(bottlenecks(batch=1), CountingPlanner(), names[:1]).warnings == ()


# ---- sites elsewhere


@pytest.mark.parametrize("name", [TOY, "a-toy"])
def test_sites_of_a_kind_that_pays_are_taken_alone(name):
    drop_identities(name=name, alike=False)
    found = run(bottlenecks(between="Identity"), SitePlanner({"i1": (10, 1), "i2": (10, 30)}), (name,))
    assert waterfall(found) == [(name, ("i1",), 11)]
    assert chosen(found) == {(name, "i1")}
    assert dict(found.counts) == {name: 1}


@pytest.mark.parametrize(("pays", "not_"), [("i1", "i2"), ("i2", "i1")])
def test_sites_of_a_kind_that_does_not_pay_are_given_back(pays, not_):
    drop_identities(alike=False)
    found = run(bottlenecks(between="Identity"), SitePlanner({pays: (10, 1), not_: (10, 11)}), (TOY,))
    assert waterfall(found) == [(TOY, ("i1", "i2"), 12), (f"without {TOY}", (not_,), 11)]
    assert chosen(found) == {(TOY, pays)}


def test_equal_sites_are_taken_together_or_not_at_all():
    drop_identities()
    found = run(bottlenecks(between="Identity"), SitePlanner({"i1": (10, 1), "i2": (10, 30)}), (TOY,))
    assert found.choices == ()


def test_a_rewrite_of_the_same_turn_leaves_other_sites_to_the_first():
    drop_identities(only=("i1",))
    drop_identities(name=OTHER, only=("i2",))
    found = run(bottlenecks(between="Identity"), SitePlanner({"i1": (10, 1), "i2": (10, 4)}), (TOY, OTHER))
    assert chosen(found) == {(TOY, "i1"), (OTHER, "i2")}
    assert waterfall(found) == [(TOY, ("i1",), 11), (OTHER, ("i2",), 5)]


def test_a_rewrite_of_a_later_turn_stands_beside_the_first():
    drop_identities(only=("i1",))
    drop_identities(name=OTHER, only=("i2",), tried=Tried(turn=2))
    found = run(bottlenecks(between="Identity"), SitePlanner({"i1": (10, 1), "i2": (10, 4)}), (TOY, OTHER))
    assert chosen(found) == {(TOY, "i1"), (OTHER, "i2")}


def test_rewrites_of_a_turn_compete_for_a_site_as_the_turns_before_left_it():
    respell("toy-a", "Identity", "Relu", turn=1)
    respell("toy-b", "Relu", "Abs", turn=2, after=("toy-a",))
    respell("toy-c", "Relu", "Softplus", turn=2, after=("toy-a",))
    planner = OperatorPlanner("i1", {"Identity": 10, "Relu": 8, "Abs": 5, "Softplus": 1})
    found = run(bottlenecks(between="Identity"), planner, ("toy-a", "toy-b", "toy-c"))
    assert waterfall(found) == [
        ("toy-a", ("i1",), 8),
        ("toy-b", ("i1",), 5),
        ("toy-c + without toy-b", ("i1",), 1),
    ]
    assert chosen(found) == {("toy-a", "i1"), ("toy-c", "i1")}


def test_room_that_a_site_makes_is_given_to_the_form_that_saves_most():
    """A kernel less elsewhere, and two blocks that want one more each: 9 bytes against 8."""
    drop_identities(only=("i1",))
    table = [{POOL: (10, 2), AVERAGE: (1, 3)}, {POOL: (10, 2), AVERAGE: (2, 3)}]
    found = run(bottlenecks(between="Identity"), TablePlanner(table), (SPELLINGS[0], TOY))
    assert chosen(found) == {(SPELLINGS[0], "y1"), (TOY, "i1")}
    assert (found.best.kernels, found.baseline.kernels) == (6, 6)


@pytest.mark.parametrize(("tight", "roomy"), [(AVERAGE, NHWC), (NHWC, AVERAGE)])
def test_room_that_a_site_makes_exchanges_a_form_for_a_better_one(tight, roomy):
    drop_identities(only=("i1",))
    names = dict(zip((AVERAGE, NHWC), SPELLINGS, strict=True))
    table = [{POOL: (10, 2), tight: (8, 2), roomy: (1, 3)}, {POOL: (1, 2), AVERAGE: (9, 2), NHWC: (9, 2)}]
    found = run(bottlenecks(between="Identity"), TablePlanner(table), (*SPELLINGS, TOY))
    assert chosen(found) == {(names[roomy], "y1"), (TOY, "i1")}
    assert [step.rewrite for step in found.steps[:2]] == [names[tight], TOY]


# ---- a site that an edit before it took away


@pytest.mark.parametrize("named", ["a", "z"])
def test_a_node_that_has_another_name_now_is_left_alone(named):
    drop_identities()
    model = bottlenecks(between="Identity")
    rewriter = next(r for r in rewriters() if r.name == TOY)
    node = next(node for node in model.graph if node.op_type == "Identity")
    before = graph.to_bytes(model)
    assert rewriter.apply(model, Site(TOY, named, target=node)) == 0
    assert rewriter.apply(model, Site(TOY, named)) == 0
    assert graph.to_bytes(model) == before
    assert rewriter.apply(model, Site(TOY, "i1", target=node)) == 1


def test_a_block_that_does_not_match_any_more_is_left_alone():
    clip_first_block()
    model = bottlenecks()
    rewriter = next(r for r in rewriters() if r.name == "toy-clip")
    (site,) = rewriter.sites(model, detect(model).se)
    assert rewriter.apply(model, site) == 1
    before = graph.to_bytes(model)
    assert rewriter.apply(model, site) == 0
    assert graph.to_bytes(model) == before


def test_a_block_whose_output_another_rewrite_took_in_is_still_refused_by_the_rest():
    before = bottlenecks(batch=1)
    names = ("hoist-squeeze-1x1", "gate-into-previous", "hoist-squeeze-kxk")
    done = optimize(before, detect(before).se, names)
    assert {c.site for c in done.choices if c.rewrite == "gate-into-previous"} == {"y1", "y2"}
    assert [(no.rewrite, no.site) for no in done.refused] == [(names[2], "y1"), (names[2], "y2")]


@pytest.mark.parametrize(("taken", "reason"), [(False, "none"), (True, "Identity")])
def test_a_reason_is_that_of_the_graph_as_made_unless_the_search_took_the_site(taken, reason):
    drop_identities()
    refuse_blocks("toy-never", taken=taken)
    before = bottlenecks(between="Identity")
    done = optimize(before, detect(before).se, (TOY, "toy-never"))
    assert {no.site: no.reason for no in done.refused} == {"y1": reason, "y2": reason}


def test_a_rewrite_is_not_refused_at_the_block_whose_output_it_took_in():
    drop_identities(only=("i1",))
    take_in_outputs("toy-take-in")
    before = bottlenecks(between="Identity")
    done = optimize(before, detect(before).se, (TOY, "toy-take-in"))
    assert chosen(done) == {(TOY, "i1"), ("toy-take-in", "in-y1")}
    assert [(no.site, no.reason) for no in done.refused] == [("y2", "an Identity is before it")]


# ---- shares of a plan


def test_kernels_behind_the_last_block_are_its_own():
    body, shapes = se(8, 4)
    model = build(
        "float[N,8,4,4] u", "float[N,8,1,1] p", f"x = Relu(u)\n{body}m = MaxPool<kernel_shape = [4, 4]>(y)\n"
        "k = Softplus(m)\np = Abs(k)", shapes,
    )  # fmt: skip
    plan = CountingPlanner().plan(model)
    shares = CostAttribution(model, detect(model).se).shares(plan, planned_bytes)
    assert {name: share.kernels for name, share in shares.items()} == {"y": plan.kernels}


def test_kernels_without_nodes_before_any_other_are_the_first_blocks():
    model = bottlenecks()
    plan = CountingPlanner().plan(model)
    bare = dataclasses.replace(plan.layers[0], onnx_nodes=(), name="reformat")
    places = CostAttribution(model, detect(model).se)
    before = places.shares(plan, planned_bytes)
    after = places.shares(dataclasses.replace(plan, layers=(bare, *plan.layers)), planned_bytes)
    assert after["y1"].kernels == before["y1"].kernels + 1
    assert after["y2"] == before["y2"]
