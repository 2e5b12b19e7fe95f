"""The inputs of a check can show a fault, and the graph accepts them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from se_deploy import verification
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.errors import UnsupportedGraph
from se_deploy.schema.input_spec import InputSpec

IMAGE = InputSpec("x", 3, 40, 24, (0.5, 0.4, 0.3), (0.25, 0.2, 0.1))


def model(inputs, body, outputs="float[A,B,C,D] y"):
    return ir.from_proto(
        parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{{body}}}')
    )


def chosen(made, **options):
    with OrtRuntime(threads=1, optimize=False).open(made) as session:
        return verification.choose(made, session, **options)


def shapes(probes, name="x"):
    return [probe.feeds[name].shape for probe in probes]


def test_a_free_batch_takes_two_sizes_and_neither_is_one():
    found = shapes(chosen(model("float[N,3,8,8] x", "y = Relu(x)")))
    assert {shape[0] for shape in found} == {2, 3}
    assert {shape[1:] for shape in found} == {(3, 8, 8)}


def test_free_height_and_width_take_two_sizes_each_and_differ_from_each_other():
    found = shapes(chosen(model("float[N,3,H,W] x", "y = Relu(x)")))
    first, second = sorted({shape[2:] for shape in found})
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert all(h != w and min(h, w) > 1 for h, w in (first, second))


def test_equal_names_are_one_dimension():
    found = shapes(chosen(model("float[N,3,S,S] x", "t = Transpose<perm = [0, 1, 3, 2]>(x) y = Add(x, t)")))
    assert all(h == w for _, _, h, w in found)
    assert len({h for _, _, h, _ in found}) == 2


def test_sizes_that_the_graph_refuses_are_not_used():
    made = model("float[N,3,H,W] x, float[1,3,100,100] k", "y = Conv(x, k)")
    assert all(min(shape[2:]) >= 100 for shape in shapes(chosen(made)))


def test_one_pixel_is_used_where_the_network_takes_nothing_else():
    made = model("float[N,3,H,W] x, float[3,4] k", "f = Flatten(x) y = MatMul(f, k)", "float[A,B] y")
    assert {shape[2:] for shape in shapes(chosen(made))} == {(1, 1)}


def test_a_graph_that_takes_nothing_is_refused_with_the_flag_to_use():
    made = model("float[N,3,H,W] x, float[9000,3] k", "y = MatMul(x, k)")
    with pytest.raises(UnsupportedGraph, match="none of the sizes") as e:
        chosen(made)
    assert "--input-size" in e.value.hint


def test_a_batch_that_is_free_by_name_only_is_one():
    made = model("float[N,3,8,8] x, float[1,3,8,8] k", "y = Concat<axis = 1>(x, k)")
    assert {shape[0] for shape in shapes(chosen(made))} == {1}


def test_named_sizes_come_first():
    made = model("float[N,3,H,W] x", "y = Relu(x)")
    assert shapes(chosen(made, image=IMAGE))[0][2:] == (40, 24)
    assert shapes(chosen(made, image=IMAGE, shapes={"x": (1, 3, 48, 56)}))[0][2:] == (48, 56)


def test_noise_is_an_image_of_the_input_spec_and_extremes_are_black_and_white():
    noise, extremes = chosen(model("float[N,3,40,24] x", "y = Relu(x)"), image=IMAGE)
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (IMAGE.mean, IMAGE.std))
    pixels = noise.feeds["x"] * std + mean
    assert (pixels.min(), pixels.max()) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))
    assert pixels.std() == pytest.approx(12**-0.5, rel=0.05)  # uniform
    ends = extremes.feeds["x"] * std + mean
    np.testing.assert_allclose(ends[0], 0, atol=1e-6)
    np.testing.assert_allclose(ends[1], 1, atol=1e-6)


def test_a_frozen_batch_of_one_gets_black_and_white_one_after_the_other():
    probes = chosen(model("float[1,3,4,4] x", "y = Relu(x)"))
    assert [probe.kind for probe in probes] == ["noise", "extremes", "extremes"]
    assert probes[1].feeds["x"].max() < 0 < probes[2].feeds["x"].min()


def test_bytes_and_booleans_take_their_whole_range():
    made = model("uint8[N,16,16] x, bool[N] b", "f = Cast<to = 1>(x) y = Relu(f)", "float[A,B,C] y")
    noise, extremes = chosen(made)
    assert (noise.feeds["x"].min(), noise.feeds["x"].max()) == (0, 255)
    assert [row.tolist() for row in extremes.feeds["x"][:, 0, :2]] == [[0, 0], [255, 255]]
    assert extremes.feeds["b"].tolist() == [False, True]


@pytest.mark.parametrize("rows", [7, 300])
def test_indices_reach_the_end_of_the_table_and_not_beyond(rows):
    made = model(f"int64[N,16] x, float[{rows},4] t", "y = Gather(t, x)", "float[A,B,C] y")
    probes = chosen(made)
    assert max(probe.feeds["x"].max() for probe in probes) == rows - 1


def test_the_users_data_is_a_probe_of_its_own():
    data = {"x": np.ones((2, 3, 8, 8), np.float32)}
    assert chosen(model("float[N,3,8,8] x", "y = Relu(x)"), data=data)[-1] == verification.Probe("data", data)


def test_a_scalar_beside_an_image_is_fed():
    made = model("float[N,3,8,8] x, float a", "y = Mul(x, a)")
    assert all(probe.feeds["a"].shape == () for probe in chosen(made))


BY_RATE = """
    k = Constant<value = int64 {16000}>() c = Equal(rate, k) v = Constant<value = int64[2] {5, 7}>()
    y = If (c) <then_branch = t () => (float[A,B] s) { s = Neg(x) },
                else_branch = e () => (float[A,B] r) { r = Reshape(x, v) }>"""


def test_integers_that_choose_a_branch_come_from_the_users_data():
    made = model("float[N,4] x, int64 rate", BY_RATE, "float[A,B] y")
    with pytest.raises(UnsupportedGraph, match=r"none of the sizes|no answers"):
        chosen(made)
    probes = chosen(made, data={"x": np.ones((1, 4), np.float32), "rate": np.asarray(16000)})
    assert {int(probe.feeds["rate"]) for probe in probes} == {16000}
    assert {probe.kind for probe in probes} == {"noise", "extremes", "data"}


def test_a_flag_is_both_true_and_false():
    made = model("float[N,3,8,8] x, bool[N,3,1,1] b", "z = Neg(x) y = Where(b, x, z)")
    drawn = [probe.feeds["b"] for probe in chosen(made) if probe.kind == "noise"]
    assert drawn
    assert all(set(np.unique(flags)) == {False, True} for flags in drawn)
