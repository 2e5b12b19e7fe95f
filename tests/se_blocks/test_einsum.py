"""Blocks that are written with einsum, as PyTorch exports it: found, and spelled as the others are."""

from __future__ import annotations

import numpy as np
import pytest
import se_graphs

from se_deploy import fusion, graph, se_blocks
from se_deploy.fusion.verdict import FusionRules
from se_deploy.passes import canonical
from se_deploy.plan import Kernel, Plan
from se_deploy.se_blocks import einsum

FP32_REORDERED = {"rtol": 1e-5, "atol": 1e-6}  # same fp32 sum in another order
POOL = "p = GlobalAveragePool(x)  v = Flatten(p)"
SUM = 'area = Constant<value_float=36.0>()  s = Einsum<equation="nchw->nc">(x)  v = Div(s, area)'
LAYERS = "h = MatMul(v, m1)  r = Relu(h)  z = MatMul(r, m2)  g = Sigmoid(z)"
FC = 'h = Einsum<equation="nc,cr->nr">(v, m1)  r = Relu(h)  z = Einsum<equation="nr,rc->nc">(r, m2)'
FC_TURNED = 'h = Einsum<equation="nc,rc->nr">(v, m2)  r = Relu(h)  z = Einsum<equation="nr,cr->nc">(r, m1)'
GATE = "g = Sigmoid(z)"
SCALE = "t = Unsqueeze(g, a)  y = Mul(x, t)"
SCALE_BY_EINSUM = 'y = Einsum<equation="nchw,nc->nchw">(x, g)'
SPELLINGS = {
    "scale": (f"{POOL} {LAYERS} {SCALE_BY_EINSUM}", "Einsum"),
    "scale, gate first": (f'{POOL} {LAYERS} y = Einsum<equation="ab, abcd -> abcd">(g, x)', "Einsum"),
    "squeeze": (f"{SUM} {LAYERS} {SCALE}", "Mul"),
    "layers": (f"{POOL} {FC} {GATE} {SCALE}", "Mul"),
    "transposed layers": (f"{POOL} {FC_TURNED} {GATE} {SCALE}", "Mul"),
    "all": (f"{SUM} {FC} {GATE} {SCALE_BY_EINSUM}", "Einsum"),
}


@pytest.fixture(params=SPELLINGS)
def spelled(request):
    body, last = SPELLINGS[request.param]
    return se_graphs.written(body, constants="int64[2] a = {2, 3}"), last


def test_a_block_is_found_and_named_by_the_graph_that_was_given(spelled):
    model, last = spelled
    nodes = {node.name: node for node in model.graph}
    before = graph.to_bytes(model)
    [block] = se_blocks.detect(model).blocks
    assert (block.kind, block.channels, block.reduced) == ("se", 4, 2)
    assert (block.gate, block.activation) == ("sigmoid", "relu")
    assert block.output == "y"
    assert nodes[block.scale_node].op_type == block.spelling[-1] == last
    assert set(block.nodes) <= set(nodes)
    assert [nodes[name].op_type for name in block.nodes] == list(block.spelling)
    values = graph.value_names(model)
    assert {block.gate_output, block.squeeze_input, block.squeeze_output} <= values
    assert graph.to_bytes(model) == before


def test_the_canonical_form_has_no_einsum_and_computes_the_same(spelled):
    model, _ = spelled
    made = canonical.canonicalize(model)
    assert not made.refused
    assert graph.ops(made.model) == ["GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid", "Mul"]
    x = np.random.default_rng(0).standard_normal((3, 4, 6, 6), np.float32)
    for want, got in zip(se_graphs.run(model, x), se_graphs.run(made.model, x), strict=True):
        np.testing.assert_allclose(got, want, **FP32_REORDERED)


SIZES = {"n": 2, "c": 3, "h": 4, "w": 5, "r": 6}


@pytest.mark.parametrize("opset", [12, 13])
@pytest.mark.parametrize(
    ("equation", "op"),
    [
        ("nchw,nc->nchw", "Mul"),
        ("nchw,hw->nchw", "Mul"),
        ("c,nchw->nchw", "Mul"),
        (",nc->nc", "Mul"),
        ("nc,nc->nc", "Mul"),
        ("nhc,rc->nhr", "MatMul"),
        ("nc,cr->nr", "MatMul"),
        ("c,rc->r", "MatMul"),
        ("nchw->nc", "ReduceSum"),
        ("nchw->", "ReduceSum"),
        ("nchw->nw", "ReduceSum"),
        ("nchw,cn->nchw", None),  # the axes in another order
        ("nchw->cn", None),
        ("nc->nc", None),
        ("nc,nc->n", None),
        ("nc,nr->cr", None),
        ("nc,nh->nch", None),
        ("nchw,nc->nch", None),
        ("...c,c->...c", None),
        ("cc->c", None),
        ("nc,c", None),
        ("nc,c,c->nc", None),
    ],
)
def test_what_is_spelled_out_computes_the_same(equation, op, opset):
    terms = equation.replace("...", "n").partition("->")[0].split(",")
    shapes = [[SIZES[letter] for letter in term] for term in terms]
    inputs = ", ".join(
        f"float[{','.join(map(str, shape))}] x{i}" if shape else f"float x{i}"
        for i, shape in enumerate(shapes)
    )
    names = ", ".join(f"x{i}" for i in range(len(shapes)))
    model = se_graphs.written(
        f'y = Einsum<equation="{equation}">({names})', opset=opset, x=inputs, outputs="float y"
    )
    made = graph.rewrite(model, einsum.spell_out_einsum)
    assert dict(made.counts)["spell_out_einsum"] == (op is not None)
    assert einsum.is_in(model) == (op is not None)
    assert (op or "Einsum") in graph.ops(made.model)
    assert made.model.graph[-1].name == model.graph[-1].name
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    np.testing.assert_allclose(
        se_graphs.run(made.model, *feeds)[0], se_graphs.run(model, *feeds)[0], **FP32_REORDERED
    )


def test_inner_sizes_that_may_differ_are_left():
    model = se_graphs.written(
        'y = Einsum<equation="nc,cr->nr">(x, w)', x="float[N,C] x, float[D,4] w", outputs="float[N,M] y"
    )
    assert not einsum.is_in(model)


def test_the_kernel_of_an_einsum_that_scales_is_the_blocks():
    body, _ = SPELLINGS["all"]
    model = se_graphs.written(body)
    kernels = tuple(Kernel(node.name, node.op_type, (), (), (node.name,)) for node in model.graph)
    rules = FusionRules(fuses_pointwise=False)
    [verdict] = fusion.verdicts(Plan("toy", "1", "cpu", kernels), se_blocks.detect(model).se, model, rules)
    assert set(verdict.layers) == {node.name for node in model.graph}
