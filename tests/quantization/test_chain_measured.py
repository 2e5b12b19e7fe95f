"""Rules that TensorRT-RTX's own plan confirms: what `evidence` calls measured."""

import pytest
from chain_graphs import FIRST, conv, last, model, pair

from se_deploy.backends import registry
from se_deploy.errors import BuildFailed
from se_deploy.quantization import chain

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.slow  # a compiler plans

POOL = "MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"


@pytest.fixture(scope="module")
def planner():
    planning = next(b.planning for b in registry.every() if b.planning and b.planning.decides_rewrites)
    with planning.open(None) as opened:
        yield opened


def kernels(planner, body):
    return planner.plan(model(body, batch=1)).kernels


def test_a_zero_point_is_refused(planner):
    body = pair("x", "xq", zero="z3") + conv("xq", "y")
    assert {one.rule.name for one in chain.lint(model(body)).breaks} == {"zero-point"}
    with pytest.raises(BuildFailed, match="zero point"):
        planner.plan(model(body, batch=1))


def test_a_scale_of_0_is_refused(planner):
    body = pair("x", "xq", "nothing") + conv("xq", "y")
    assert {one.rule.name for one in chain.lint(model(body)).breaks} == {"scale"}
    with pytest.raises(BuildFailed, match="positive"):
        planner.plan(model(body, batch=1))


def test_max_pooling_commutes(planner):
    behind = FIRST + f" r = Relu(a) m = {POOL}(r) " + last("m", "s")
    before = FIRST + " r = Relu(a) " + pair("r", "rq") + f" m = {POOL}(rq) " + conv("m", "y")
    assert kernels(planner, behind) == kernels(planner, before)
    types = [
        (k.inputs[0].dtype, k.outputs[0].dtype)
        for k in planner.plan(model(behind, batch=1)).layers
        if "pool" in k.kind
    ]
    assert types == [("int8", "int8")]


def test_other_scales_cost_a_kernel(planner):
    second = FIRST + " r = Relu(a) " + pair("r", "rq") + conv("rq", "o")
    shared = second + " e = Add(o, rq) k = Relu(e) " + last("k")
    other = second + pair("r", "rq2", "s2") + " e = Add(o, rq2) k = Relu(e) " + last("k")
    assert not chain.lint(model(shared)).breaks
    assert {one.rule.name for one in chain.lint(model(other)).breaks} == {"two-scales"}
    assert kernels(planner, other) == kernels(planner, shared) + 1


def test_factors_and_sums_behind_a_pointwise_kernel_cost_none(planner):
    plain = FIRST + " h = HardSwish(a) " + last("h")
    more = FIRST + " h = HardSwish(a) m = Mul(h, c_m) r = Sub(m, c_o) " + last("r")
    assert not chain.lint(model(more)).breaks
    one, two = (planner.plan(model(body, batch=1)) for body in (plain, more))
    assert (one.kernels, one.activation_bytes) == (two.kernels, two.activation_bytes)
