import dataclasses

import plan_graphs
import pytest

from se_deploy import graph
from se_deploy.backends import precision_check
from se_deploy.backends.tensorrt.planner import start_planner
from se_deploy.plan import Kernel, Plan, PlanTensor

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def planner():
    started = start_planner()
    yield started
    started.close()


NETS = {
    "fp32": plan_graphs.se_net(),
    "fp16": plan_graphs.se_net(dtype="float16"),
    "int8": plan_graphs.quantized_net(per_channel=False, dtype="float16"),
}


@pytest.mark.parametrize("precision", NETS)
def test_the_plan_is_in_the_precision_of_the_graph(planner, precision):
    model = NETS[precision]
    found = precision_check.planned_precision(planner.plan(model), model)
    assert found.precision == precision
    assert found.failures(precision) == ()
    assert found.fallen == ()
    assert sum(found.planned.values()) == pytest.approx(1)
    assert found.planned == found.asked


@pytest.mark.parametrize(
    ("asked", "given"), [("int8", "fp16"), ("int8", "fp32"), ("fp16", "fp32"), ("fp32", "fp16")]
)
def test_what_the_graph_does_not_hold_is_not_found(planner, asked, given):
    model = NETS[given]
    (said,) = precision_check.planned_precision(planner.plan(model), model).failures(asked)
    assert said.startswith(f"{asked} was asked for, but nothing in the graph is in {asked}")


def test_an_int8_layer_that_runs_in_float_is_named(planner):
    model = NETS["int8"]
    plan = planner.plan(model)
    fallen = dataclasses.replace(plan, layers=tuple(_in_float(layer) for layer in plan.layers))
    found = precision_check.planned_precision(fallen, model)
    assert (found.precision, found.fallen) == ("fp16", ("n_m",))
    assert "1 layer fell back, among them 'n_m'" in found.failures("int8")[0]


def test_shares_are_of_multiply_accumulates(planner):
    model = NETS["int8"]
    conv = next(node for node in model.graph if node.name == "n_m")
    total = sum(graph.macs(node) for node in model.graph)
    found = precision_check.planned_precision(planner.plan(model), model)
    assert found.planned["int8"] == pytest.approx(graph.macs(conv) / total)


def test_the_kernel_with_the_weights_decides_and_not_one_that_only_prepares():
    model = NETS["int8"]
    half, narrow = (PlanTensor("x", dtype, (1, 32, 14, 14)) for dtype in ("float16", "int8"))
    weights = (PlanTensor("w", "float16", (32, 32, 1, 1)),)
    conv = Kernel("conv", "correlation", (half,), (half,), ("n_m",), weights)
    fake_quantize = Kernel("q", "kgen", (narrow,), (half,), ("n_m",))
    plan = Plan("tensorrt-rtx", "", "sm75", (fake_quantize, conv))
    assert precision_check.planned_precision(plan, model).fallen == ("n_m",)


def test_a_small_layer_may_fall_and_a_large_one_may_not(planner):
    model = NETS["fp16"]
    plan = planner.plan(model)
    for name, kept in (("n_f1", "fp16"), ("n_m", "fp32")):
        layers = tuple(_wide(layer) if name in layer.onnx_nodes else layer for layer in plan.layers)
        found = precision_check.planned_precision(dataclasses.replace(plan, layers=layers), model)
        assert (found.precision, found.fallen) == (kept, (name,))


def _in_float(layer):
    inputs = tuple(dataclasses.replace(t, dtype="float16") if t.dtype == "int8" else t for t in layer.inputs)
    return dataclasses.replace(layer, inputs=inputs)


def _wide(layer):
    return dataclasses.replace(
        layer, inputs=tuple(dataclasses.replace(t, dtype="float32") for t in layer.inputs)
    )
