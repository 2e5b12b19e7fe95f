"""A search whose plans are made side by side decides, counts and says what one after the other does."""

import dataclasses

import pytest
from planners import CountingPlanner, SideBySide, TablePlanner
from rewrites_graphs import bottlenecks as network
from toy_rewrites import drop_identities

from se_deploy import graph
from se_deploy.errors import BuildFailed
from se_deploy.passes.search import Goal, search
from se_deploy.se_blocks import detect

PLANNERS = {
    "hoists": CountingPlanner,
    "one block dislikes it": lambda: CountingPlanner(dislike=("AveragePool", "u1")),
    "refused graphs": lambda: CountingPlanner(refuse=("AveragePool",)),
}
SPELLINGS = ("squeeze-average-pool", "squeeze-nhwc-mean")
POOL, AVERAGE, NHWC = "GlobalAveragePool", "AveragePool", "Transpose"


def found(model, planner, allowed=None, **goal):
    return search(model, detect(model).blocks, planner, allowed=allowed, goal=Goal(**goal))


def said(result):
    return graph.to_bytes(result.model), dataclasses.replace(result, model=None)


@pytest.mark.parametrize("kind", PLANNERS)
@pytest.mark.parametrize("width", [2, 16])
def test_the_choice_is_the_same(kind, width):
    model = network()
    beside = SideBySide(PLANNERS[kind](), width)
    assert said(found(model, beside)) == said(found(model, PLANNERS[kind]()))
    assert max(beside.batches) > 1, "some plans were made side by side"


@pytest.mark.parametrize("budget", [1, 2, 5, 13])
def test_so_it_is_wherever_the_budget_ends(budget):
    model = network()
    plain = CountingPlanner(dislike=("AveragePool", "u1"))
    beside = SideBySide(CountingPlanner(dislike=("AveragePool", "u1")), 4)
    one, other = found(model, plain, budget_plans=budget), found(model, beside, budget_plans=budget)
    assert said(other) == said(one)
    assert plain.asked == one.plans_used <= budget


def test_so_it_is_where_mixtures_break_the_limit_on_kernels():
    table = [
        {POOL: (10, 2), AVERAGE: (1, 3), NHWC: (9, 1)},
        {POOL: (10, 2), AVERAGE: (2, 3), NHWC: (4, 1)},
        {POOL: (1, 2), AVERAGE: (20, 3), NHWC: (20, 3)},
    ]
    planner = TablePlanner(table, border=(AVERAGE, NHWC))
    one, other = (found(network(count=3), p, SPELLINGS) for p in (planner, SideBySide(planner, 3)))
    assert said(other) == said(one)
    assert one.choices


@pytest.mark.parametrize("width", [2, 3])
def test_a_group_of_sites_is_taken_back_as_with_one_plan_at_a_time(width):
    drop_identities(alike=False)
    model, names = network(count=3, between="Identity"), ("toy-drop-identity",)
    plain = CountingPlanner(dislike=("Conv", "u1"))
    beside = SideBySide(CountingPlanner(dislike=("Conv", "u1")), width)
    one, other = found(model, plain, names), found(model, beside, names)
    assert said(other) == said(one)
    assert {choice.site for choice in one.choices} == {"i2", "i3"}
    assert len(one.steps) > 1, "one group was taken after another"
    assert max(beside.batches) > 1, "some plans were made side by side"


class Once(CountingPlanner):
    """Counts what it planned before."""

    def __init__(self, **kw):
        super().__init__(**kw)
        self.seen, self.again = set(), 0

    def plan(self, model):
        text = graph.to_bytes(model)
        self.again += text in self.seen
        self.seen.add(text)
        return super().plan(model)


@pytest.mark.parametrize("dislike", [("AveragePool", "u1"), ("Conv", "u1")])
@pytest.mark.parametrize("budget", [3, 8, 100])
def test_no_graph_is_planned_twice_nor_any_beyond_the_budget(budget, dislike):
    drop_identities(alike=False)
    planner = Once(dislike=dislike)
    beside = SideBySide(planner, 3)
    result = found(network(count=3, between="Identity"), beside, budget_plans=budget)
    assert planner.again == 0
    assert planner.asked <= budget
    assert result.plans_used <= budget


def test_a_refused_baseline_is_an_error_still():
    with pytest.raises(BuildFailed):
        found(network(), SideBySide(CountingPlanner(refuse=("GlobalAveragePool",)), 4))


def test_a_planner_of_width_one_is_never_asked_ahead():
    beside = SideBySide(CountingPlanner(), 1)
    assert said(found(network(), beside)) == said(found(network(), CountingPlanner()))
    assert beside.batches == []
