"""Decisions on regions and verdicts that no compiler's plan of a common network comes to."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import plan_graphs
import pytest
from onnx import parser

from se_deploy import fusion, graph
from se_deploy.fusion import FusionRules
from se_deploy.fusion.region import Graph, is_map
from se_deploy.plan import Kernel, Plan, PlanTensor


def region(model, **changed):
    return Graph(model).region(dataclasses.replace(plan_graphs.block(model), **changed))


def test_a_block_whose_gate_has_no_tensor_is_followed_from_its_output_as_far_as_the_map():
    model = plan_graphs.se_net()
    whole = region(model)
    found = region(model, nodes=("gone",), layers=("gone",), scale_node="gone", gate_output="gone")
    assert found.nodes == whole.nodes
    assert "n_m" not in found.nodes
    assert (found.squeeze, found.layers) == (whole.squeeze, whole.layers)


@pytest.mark.parametrize("order", ["p, half", "half, p"])
def test_a_gate_is_followed_past_a_constant_whichever_input_it_is(monkeypatch, order):
    layers = plan_graphs.LAYERS["conv"].replace("Conv(p,", "Conv(h,")
    monkeypatch.setitem(plan_graphs.LAYERS, "conv", f"h = Mul({order}) {layers}")
    model = with_constants(monkeypatch, half=np.array(0.5, np.float32))
    block = plan_graphs.unknown(plan_graphs.block(model))
    assert Graph(model).region(block).squeeze == ("n_p",)


def test_a_sum_of_channels_times_their_weights_is_a_squeeze_and_no_layer(monkeypatch):
    monkeypatch.setitem(plan_graphs.POOLS, "weighted", "q = Mul(m, each) p = ReduceSum<keepdims=1>(q, axes)")
    each = np.full((1, plan_graphs.C, 1, 1), 0.01, np.float32)
    model = with_constants(monkeypatch, pool="weighted", each=each)
    block = plan_graphs.unknown(plan_graphs.block(model))
    found = Graph(model).region(block)
    assert (found.squeeze, found.layers) == (("n_p",), ("n_f1", "n_f2"))


def with_constants(monkeypatch, pool="gap", **arrays):
    made = plan_graphs._model
    monkeypatch.setattr(plan_graphs, "_model", lambda *args, **kw: made(*args, **kw, extra=arrays))
    return plan_graphs.se_net(pool)


def kernel(name, nodes, reads, writes, layout="nhwc"):
    def tensors(names, layout):
        return tuple(PlanTensor(n, "float32", (-1, 32, 14, 14), layout) for n in names)

    return Kernel(name, "kgen", tensors(reads, "nhwc"), tensors(writes, layout), tuple(nodes))


BLOCK = (
    kernel("mean", ["n_p"], ["m"], ["p"]),
    kernel("fc1", ["n_f1", "n_a"], ["p"], ["a"]),
    kernel("fc2", ["n_f2", "n_g"], ["a"], ["g"]),
    kernel("scale", ["n_s", "n_e", "n_y"], ["m", "g", "x"], ["y"]),
)


@pytest.mark.parametrize(
    ("maker", "advised"),
    [
        (kernel("act", ["n_act"], ["m0"], ["m"], "nchw"), True),
        (kernel("act", ["n_act"], ["m0"], ["m"]), False),  # turns nothing
        (kernel("conv", ["n_m"], ["x0"], ["m"], "nchw"), False),  # is the convolution
    ],
    ids=["turns", "keeps", "convolution"],
)
def test_only_a_kernel_apart_that_turns_the_map_is_advised_against(maker, advised):
    model = plan_graphs.se_net()
    plan = Plan("any", "", "sm86", (maker, *BLOCK))
    (verdict,) = fusion.verdicts(plan, [plan_graphs.block(model)], model, FusionRules())
    assert verdict.verdict == "fused"
    assert ["turns NHWC to NCHW" in reason for reason in verdict.reasons] == [True] * advised


def test_a_block_of_one_pixel_is_taken_out_too():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4,1,1] x, float[4,4,1,1] w) => (float[1,4,1,1] y)
        { m = Relu(x) p = GlobalAveragePool(m) f = Conv(p, w) g = Sigmoid(f) y = Mul(m, g) }"""
    model = graph.tidy(ir.from_proto(parser.parse_model(text)))
    (scale,) = [node for node in model.graph if node.op_type == "Mul"]
    block = dataclasses.replace(
        plan_graphs.block(plan_graphs.se_net()), output="y", gate_output="g", scale_node=scale.name
    )
    plain = fusion.without_gates(model, [block])
    assert [node.op_type for node in plain.graph] == ["Relu", "Identity"]


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((1, 4), False),
        ((1, 4, 1, 1), False),
        ((1, 4, 8, 1), True),  # a column
        ((1, 4, 1, 8), True),
        ((1, 4, None, 1), True),
        ((1, 4, 8), True),
    ],
)
def test_a_map_has_more_than_one_place(shape, wanted):
    assert is_map(ir.Value(name="x", shape=ir.Shape(shape))) == wanted
