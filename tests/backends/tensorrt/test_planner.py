import dataclasses
import json

import plan_graphs
import pytest

from se_deploy.backends.tensorrt.planner import start_planner
from se_deploy.targets import resolve_target

pytest.importorskip("tensorrt_rtx")


def test_a_planner_asks_once_for_each_graph(tmp_path):
    planner = start_planner(cache=tmp_path / "plans")
    first = planner.plan(plan_graphs.se_net())
    assert planner.plan(plan_graphs.se_net()) == first
    assert planner.asked == 1
    planner.plan(plan_graphs.se_net("nhwc"))
    assert planner.asked == 2
    planner.close()
    again = start_planner(cache=tmp_path / "plans")
    assert again.plan(plan_graphs.se_net()) == first
    assert again.asked == 0
    again.close()


def test_a_cached_plan_is_json_of_the_plan(tmp_path):
    planner = start_planner(cache=tmp_path)
    plan = planner.plan(plan_graphs.se_net())
    planner.close()
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == json.loads(json.dumps(dataclasses.asdict(plan)))


def test_another_target_is_another_plan(tmp_path):
    planners = [start_planner(target=resolve_target(t), cache=tmp_path) for t in ("sm86", "sm75")]
    plans = [planner.plan(plan_graphs.se_net()) for planner in planners]
    for planner in planners:
        planner.close()
    assert [plan.target for plan in plans] == ["sm86", "sm75"]
    assert len(list(tmp_path.iterdir())) == 2
