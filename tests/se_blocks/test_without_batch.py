"""A gated map without a batch axis is told, by the census and by the commands: nobody searched it."""

from __future__ import annotations

import json

import pytest
from layer_graphs import model_of, weights

from se_deploy import graph, se_blocks
from se_deploy.cli.main import main

DENSE = [("a", weights(16, 4)), ("b", weights(4, 16))]
POINTWISE = [("a", weights(4, 16, 1, 1)), ("b", weights(16, 4, 1, 1))]
GATE = "h = MatMul(p, a) u = Relu(h) e = MatMul(u, b) s = Sigmoid(e) "
POINTS = (
    "q = Unsqueeze(p, z) h = Conv(q, a) i = Squeeze(h, z) u = Relu(i) v = Unsqueeze(u, z) "
    "e = Conv(v, b) f = Squeeze(e, z) s = Sigmoid(f) y = Mul(r, s)"
)
GRAPHS = {
    "a map, linear layers": (
        "r = Relu(x) p = ReduceMean<axes = [1, 2], keepdims = 0>(r) "
        + GATE
        + "k = Constant<value = int64[3] {16, 1, 1}>() g = Reshape(s, k) y = Mul(r, g)",
        "float[16,8,8]",
        DENSE,
    ),
    "a sequence, linear layers": (
        "r = Relu(x) p = ReduceMean<axes = [1], keepdims = 0>(r) "
        + GATE
        + "k = Constant<value = int64[2] {16, 1}>() g = Reshape(s, k) y = Mul(g, r)",
        "float[16,8]",
        DENSE,
    ),
    "a map, convolutions of a batch of one": (
        "z = Constant<value = int64[1] {0}>() r = Relu(x) p = ReduceMean<axes = [-2, -1]>(r) " + POINTS,
        "float[16,8,8]",
        POINTWISE,
    ),
}
OTHERS = {
    "with a batch": (
        "p = GlobalAveragePool(x) h = Conv(p, a) u = Relu(h) e = Conv(u, b) s = Sigmoid(e) y = Mul(x, s)",
        "float[N,16,8,8]",
        POINTWISE,
    ),
    "no layer between": (
        "p = ReduceMean<axes = [1, 2]>(x) s = Sigmoid(p) y = Mul(x, s)",
        "float[16,8,8]",
        [],
    ),
    "one factor for each sample": (
        "p = ReduceMean<axes = [1]>(x) h = MatMul(p, c) s = Sigmoid(h) y = Mul(x, s)",
        "float[16,64]",
        [("c", weights(1, 1))],
    ),
    "of another map": (
        "r = Relu(x) p = ReduceMean<axes = [1], keepdims = 0>(r) "
        + GATE
        + "k = Constant<value = int64[2] {16, 1}>() g = Reshape(s, k) t = Tanh(x) y = Mul(t, g)",
        "float[16,8]",
        DENSE,
    ),
}


def made(name, graphs):
    body, shape, constants = graphs[name]
    return model_of(body, constants, inputs=f"{shape} x", output=f"{shape} y", opset=17)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_gated_map_without_a_batch_axis_is_told(name):
    """It was called one factor for the whole map, and the graph one without SE blocks."""
    found = se_blocks.detect(made(name, GRAPHS))
    assert not found.blocks
    assert [no.output for no in found.rejected] == ["y"]
    assert "without a batch axis is not searched" in found.rejected[0].reason
    (warning,) = found.warnings
    assert "1 gated map has no batch axis, 'y' first" in warning


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_none_is_not(name):
    found = se_blocks.detect(made(name, OTHERS))
    assert found.warnings == ()
    assert len(found.blocks) == (name == "with a batch")


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_the_commands_warn_of_it(tmp_path, capsys, command):
    model = made("a sequence, linear layers", GRAPHS)
    graph.save(model, tmp_path / "net.onnx")
    more = ["-o", str(tmp_path / "out.onnx")] if command == "export" else []
    assert main([command, str(tmp_path / "net.onnx"), *more, "--json"], standalone_mode=False) == 0
    out = capsys.readouterr()
    made_of_it = json.loads(out.out)
    assert not made_of_it["blocks"]
    assert any("a graph without a batch axis is not searched" in text for text in made_of_it["warnings"])
    assert "a graph without a batch axis is not searched" in out.err
