import onnx_ir as ir
import plan_graphs
import pytest

from se_deploy import graph
from se_deploy.backends.engine import MAX_BATCH, profiles
from se_deploy.errors import BadInput, UnsupportedGraph
from se_deploy.schema import input_spec
from se_deploy.schema.files import ShapeRange


def test_a_free_batch_gets_a_range_and_a_fixed_one_none():
    free = profiles(plan_graphs.se_net(), {})["x"]
    assert (free.min[0], free.opt[0], free.max[0]) == (1, 1, MAX_BATCH)
    fixed = profiles(plan_graphs.se_net(batch=2), {})["x"]
    assert fixed.min == fixed.opt == fixed.max == (2, plan_graphs.C, plan_graphs.SIDE, plan_graphs.SIDE)


def test_free_height_and_width_come_from_the_input_spec():
    model = _any_size()
    with pytest.raises(UnsupportedGraph, match="free dimension"):
        profiles(model, {})
    spec = input_spec.InputSpec("x", 32, 20, 24, (0.0,) * 32, (1.0,) * 32)
    input_spec.write(model.metadata_props, spec)
    assert profiles(model, {})["x"].opt == (1, 32, 20, 24)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"z": ((1, 32, 14, 14),) * 3}, "no input"),
        ({"x": ((1, 3, 14, 14),) * 3}, "does not fit"),
        ({"x": ((1, 32, 14),) * 3}, "does not fit"),
        ({"x": ((4, 32, 14, 14), (1, 32, 14, 14), (8, 32, 14, 14))}, "out of order"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, said):
    given = {name: ShapeRange(*three) for name, three in shapes.items()}
    with pytest.raises(BadInput, match=said):
        profiles(plan_graphs.se_net(), given)


def _any_size():
    model = plan_graphs.se_net()
    model.graph.inputs[0].shape = ir.Shape(["N", 32, "H", "W"])
    return graph.tidy(model)
