"""Operator sets: which are read as they are, which are converted, and what is said of it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import parser
from se_graphs import Recipe, build, read, run
from test_cli import run as call

from se_deploy import graph, opsets, se_blocks
from se_deploy.commands import reading, source
from se_deploy.commands.parity import parity
from se_deploy.errors import UnsupportedGraph
from se_deploy.options import ImageOptions, NetworkOptions
from se_deploy.se_blocks import constants

REORDERED = {"rtol": 1e-5, "atol": 1e-6}
SIZE = "float[N,3,6,5] x"
# What each of these operators takes as an attribute became an input later; the gate stands in an If's branch.
OLD = """
    a = Conv(x, w) u = Upsample<mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]>(a) r = Relu(u)
    p = GlobalAveragePool(r) s = Squeeze<axes = [2, 3]>(p) d = Unsqueeze<axes = [2, 3]>(s)
    c = Conv(d, w1) e = Clip<min = 0.0, max = 6.0>(c) f = Conv(e, w2) g = Sigmoid(f) m = Mul(r, g)
    o = Softmax<axis = 1>(m) y = Slice<axes = [2], starts = [1], ends = [5]>(o)"""
UPSAMPLE = 'u = Upsample<mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]>(a)'
NO_UPSAMPLE, SLICE_BY_INPUTS = 9, 10  # the opsets that took these forms away
BRANCHES = """
    a = Conv(x, w) p = GlobalAveragePool(a)
    y = If(t) <then_branch = g1 () => (float[N,K,H,W] m) {
        c = Conv(p, w1) e = Clip<min = 0.0, max = 6.0>(c) f = Conv(e, w2) g = Sigmoid(f) m = Mul(a, g)
    }, else_branch = g2 () => (float[N,K,H,W] n) { n = Clip<min = 0.0, max = 1.0>(a) }>"""


def old(opset, body=OLD, inputs=SIZE):
    rng = np.random.default_rng(0)
    proto = parser.parse_model(
        f'<ir_version: 3, opset_import: ["" : {opset}]> g ({inputs}, float[8,3,1,1] w, float[4,8,1,1] w1, '
        f"float[8,4,1,1] w2) => (float[N,K,H,W] y) {{ {body} }}"
    )
    for name, shape in {"w": (8, 3, 1, 1), "w1": (4, 8, 1, 1), "w2": (8, 4, 1, 1)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def feeds(**more):
    return {"x": np.random.default_rng(1).standard_normal((2, 3, 6, 5)).astype(np.float32), **more}


def lifted(path):
    return reading.converted(reading.load_onnx(path, ImageOptions()), str(path))


@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_an_old_file_is_converted_and_said_so(tmp_path, opset):
    path = tmp_path / "old.onnx"
    body = OLD if opset < NO_UPSAMPLE else OLD.replace(UPSAMPLE, "u = Relu(a)")
    body = body if opset < SLICE_BY_INPUTS else body.split("o = Softmax")[0].replace("m = Mul", "y = Mul")
    onnx.save(old(opset, body), path)
    made = lifted(path)
    assert graph.opset(made.model) == opsets.OWN
    assert [b.kind for b in se_blocks.detect(made.model).se] == ["se"]
    assert [f"operator set {opset}: onnx's version converter" in note for note in made.warnings] == [True]
    one, other = (run(model, feeds()["x"])[0] for model in (made.model, graph.load(path)))
    np.testing.assert_allclose(one, other, **REORDERED)


def test_a_converted_file_is_compared_with_itself_as_it_came(tmp_path):
    path = tmp_path / "old.onnx"
    onnx.save(old(7), path)
    taken = source.read(str(path))
    assert taken.verified.passed
    assert any("brought it to 11" in note for note in taken.warnings)


def test_a_conversion_that_changes_the_answers_fails(tmp_path, monkeypatch):
    path = tmp_path / "old.onnx"
    onnx.save(old(8), path)
    right = opsets.converted

    def wrong(model, version):
        made = right(model, version)
        next(n for n in made.graph if n.op_type == "Clip").inputs[2].const_value = graph.ir.tensor(
            np.float32(0.5)
        )
        return made

    monkeypatch.setattr(opsets, "converted", wrong)
    assert not source.read(str(path)).verified.passed


def test_the_bodies_of_an_old_if_are_converted_and_searched(tmp_path):
    path = tmp_path / "branches.onnx"
    onnx.save(old(9, BRANCHES, f"{SIZE}, bool t"), path)
    given = graph.load(path)
    made = opsets.converted(given, 20)
    for chosen in (True, False):
        one, other = (run(model, feeds()["x"], np.array(chosen))[0] for model in (made, given))
        np.testing.assert_allclose(one, other, **REORDERED)
    assert [b.output for b in se_blocks.detect(made).se] == ["m"]


@pytest.mark.parametrize(
    ("opset", "advice"), [(6, "onnx.version_converter"), (27, "--opset 20"), (99, "--opset 20")]
)
def test_a_file_outside_the_range_is_one_clear_sentence(capsys, tmp_path, opset, advice):
    proto, _, _ = build(Recipe())
    proto.opset_import[0].version = opset
    onnx.save(proto, tmp_path / "net.onnx")
    code, out, _ = call(capsys, "inspect", tmp_path / "net.onnx", "--json")
    error = json.loads(out)["error"]
    assert code == 1
    assert f"operator set {opset}, and only 7 to 26 can be read" in error["message"]
    assert advice in error["hint"]


@pytest.mark.parametrize("opset", [11, 13, 17, 22, 24, 26])
def test_a_file_in_range_is_worked_on_as_it_is(tmp_path, opset):
    onnx.save(build(Recipe(opset=opset))[0], tmp_path / "net.onnx")
    made = lifted(tmp_path / "net.onnx")
    assert (graph.opset(made.model), made.warnings, made.truth) == (opset, (), None)
    assert len(se_blocks.detect(made.model).se) == 1


def exported(capsys, folder, opset):
    onnx.save(build(Recipe(opset=17))[0], folder / "net.onnx")
    words = ["export", folder / "net.onnx", "-o", folder / "out.onnx", "--opset", opset, "--json"]
    code, out, _ = call(capsys, *words)
    return code, json.loads(out)


def test_opset_converts_an_onnx_file(capsys, tmp_path):
    code, made = exported(capsys, tmp_path, 24)
    assert code in {0, None}
    assert made["opset"] == 24 == graph.opset(graph.load(tmp_path / "out.onnx"))
    assert made["verified"]["passed"]
    assert any("brought it to 24" in note for note in made["warnings"])


def test_opset_that_an_onnx_file_cannot_be_converted_to_is_one_sentence(capsys, tmp_path):
    code, made = exported(capsys, tmp_path, 11)
    assert code == 1
    assert "set 17, and onnx cannot convert it to 11: No Adapter" in made["error"]["message"]
    assert not (tmp_path / "out.onnx").exists()


def test_opset_of_what_is_only_run_is_said_to_be_unused(tmp_path):
    onnx.save(build(Recipe())[0], tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", feeds()["x"])
    path = tmp_path / "net.onnx"
    made = parity(path, [path], data=tmp_path / "x.npy", network=NetworkOptions(opset=13))
    assert "--opset 13 was not used: nothing is written here" in made.warnings


def test_what_onnx_cannot_convert_is_said_with_its_reason():
    model = read(layer_norm())
    with pytest.raises(UnsupportedGraph, match=r"set 17, and onnx cannot convert it to 11: .*LayerNorm"):
        opsets.converted(model, 11)


def layer_norm():
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x, float[4] s) => (float[N,4] y) '
        "{ y = LayerNormalization(x, s) }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "s"))
    return proto


def chain(value, length):
    for i in range(length):
        value = graph.ir.node("Relu", [value], outputs=[graph.ir.Value(name=f"v{i}")]).outputs[0]
    return value


def test_constants_behind_a_deep_network_are_asked_for_without_recursion():
    known = constants.Constants(opset=17)
    assert known.array(chain(graph.ir.Value(name="x"), 3000)) is None
    one = graph.ir.Value(name="one", const_value=graph.ir.tensor(np.ones(1, np.float32)))
    assert known.array(chain(one, 1200)) == 1
