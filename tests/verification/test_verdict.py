"""What a step got wrong is seen, where it begins is named, and rounding is no fault."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

from se_deploy import comparison, graph, schema, verification
from se_deploy.backends.onnxruntime.session import OrtRuntime

EXACT = OrtRuntime(threads=1, optimize=False)


def model(body, outputs="float[N,4,8,8] y"):
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,4,8,8] x) => ({outputs}) {{{body}}}'
    return graph.tidy(ir.from_proto(parser.parse_model(text)))


def const(name, value):
    return f"{name} = Constant<value = float {{{value}}}>() "


def verified(before, after, **options):
    with EXACT.open(before) as session:
        probes = verification.choose(before, session)
    expected = verification.expect(lambda: EXACT.open(before), probes)
    with EXACT.open(after) as made:
        return verification.verify(expected, made, step="simplify", **options)


def test_the_same_graph_passes():
    found = verified(model("y = Relu(x)"), model("y = Relu(x)"))
    assert found.passed
    assert {one.kind for one in found.inputs} == {"noise", "extremes"}


def test_another_order_of_the_same_sum_passes():
    before = model("a = ReduceMean<axes = [2, 3]>(x) y = Mul(x, a)")
    after = model(const("k", 1 / 64) + "s = ReduceSum<keepdims = 1>(x) t = Mul(s, k) y = Mul(x, t)")
    assert not verified(before, after).passed  # a sum over all axes is another function
    after = model(
        const("k", 1 / 64) + "ax = Constant<value_ints = [2, 3]>() s = ReduceSum(x, ax) t = Mul(s, k) "
        "y = Mul(x, t)"
    )
    assert verified(before, after).passed


@pytest.mark.parametrize("factor", [1.001, 0.99, -1.0])
def test_another_function_fails_with_its_error_and_limit(factor):
    found = verified(model("y = Relu(x)"), model(const("k", factor) + "r = Relu(x) y = Mul(r, k)"))
    (failure,) = found.wrong
    assert not found.passed
    assert (failure.step, failure.output) == ("simplify", "y")
    assert failure.error > failure.limit > 0
    assert "limit" in failure.text


def test_a_nan_that_the_source_does_not_have_fails_whatever_the_tolerance():
    after = model("l = Log(x) e = Exp(l) y = Relu(e)")
    for tolerance in (None, comparison.PRESETS["int8"]):
        (failure,) = verified(model("y = Relu(x)"), after, tolerance=tolerance).wrong
        assert "not finite" in failure.measure
        assert verification.to_schema(verification.Verified(failures=(failure,))).failures[0].error is None


def test_a_nan_that_the_source_has_too_is_its_own():
    before = model("y = Log(x)")
    assert verified(before, model("y = Log(x)")).passed
    after = model(const("k", 1.01) + "l = Log(x) y = Mul(l, k)")
    assert not verified(before, after).passed  # the numbers beside the NaN are compared all the same


def test_a_source_without_any_number_is_said_so():
    relu = model("y = Relu(x)")
    shape = (1, 4, 8, 8)
    expected = verification.Expected(
        (verification.Probe("noise", {"x": np.ones(shape, np.float32)}),),
        ({"y": np.full(shape, np.nan, np.float32)},),
        lambda: EXACT.open(relu),
    )
    with EXACT.open(relu) as made:
        assert "nothing was compared" in verification.verify(expected, made, step="fp16").notes[0]


def test_a_size_that_only_the_source_accepts_fails():
    before = model("y = Relu(x)", "float[N,4,8,8] y")
    after = model(
        "s = Constant<value_ints = [2, 4, 8, 8]>() r = Relu(x) y = Reshape(r, s)", "float[N,4,8,8] y"
    )
    (failure,) = verified(before, after).failures
    assert "refused" in failure.text


def test_integers_are_held_to_equality_and_a_flip_by_rounding_is_none():
    outputs = "int64[N,1,8,8] y"
    before = model("y = ArgMax<axis = 1>(x)", outputs)
    other = model("y = ArgMin<axis = 1>(x)", outputs)
    (failure,) = verified(before, other).wrong
    assert failure.measure.startswith("share of other values")
    assert failure.error > 0.5
    # a sine of millions of radians: its phase is what the last bits of x say
    chaos = "a = Mul(x, k) b = Mul(a, h) s = Sin(b) y = ArgMax<axis = 1>(s)"
    one, two = (const("k", k) + const("h", h) + chaos for k, h in ((3e6, 1.0), (0.3, 1e7)))
    assert verified(model(one, outputs), model(two, outputs)).passed


def test_where_the_source_itself_is_at_the_mercy_of_rounding_more_is_allowed():
    one, two = (const("k", k) + const("h", h) for k, h in ((3e6, 1.0), (0.3, 1e7)))
    chaos = "a = Mul(x, k) b = Mul(a, h) y = Sin(b)"
    assert verified(model(one + chaos), model(two + chaos)).passed
    calm = "a = Mul(x, k) b = Mul(a, h) y = Relu(b)"
    assert verified(model(one + calm), model(two + calm)).passed
    assert not verified(model(one + calm), model(const("k", 3e6) + const("h", 1.001) + calm)).passed


def test_a_lower_precision_is_held_to_its_preset_and_a_miss_is_no_wrong_answer():
    after = model(const("k", 1.05) + "r = Relu(x) y = Mul(r, k)")
    found = verified(model("y = Relu(x)"), after, tolerance=comparison.PRESETS["fp16"])
    assert not found.passed
    assert not found.wrong
    (miss,) = found.missed
    assert (miss.preset, miss.limit < miss.error) == ("fp16", True)
    assert verified(model("y = Relu(x)"), after, tolerance=comparison.PRESETS["int8"]).passed


def test_the_node_where_it_begins_is_named():
    before = model("a = Relu(x) b = Neg(a) y = Abs(b)")
    after = model(const("k", 2.0) + "a = Relu(x) n = Neg(a) b = Mul(n, k) y = Abs(b)")
    for node in after.graph:
        node.name = f"node of {node.outputs[0].name}"

    def locate(feeds):
        return comparison.first_divergence(before, after, feeds, runtime=EXACT, limit=1e-4)

    (failure,) = verified(before, after, locate=locate).failures
    assert failure.node == "node of b"
    assert failure.tensor == "b"
    assert "node of b" in failure.text


def test_the_json_form_is_the_contract():
    after = model(const("k", 2.0) + "r = Relu(x) y = Mul(r, k)")
    found = json.loads(schema.encode(verification.to_schema(verified(model("y = Relu(x)"), after))))
    assert found["passed"] is False
    assert {"name", "dims", "kind"} <= set(found["inputs"][0])
    assert {"step", "node", "output", "error", "limit"} <= set(found["failures"][0])


def test_what_was_not_verified_has_not_passed():
    found = verification.skipped()
    assert not found.passed
    assert "--no-verify" in found.warnings[0]
    assert not verification.Verified().joined(found).passed


@settings(deadline=None)
@given(count=st.integers(0, 40), guilty=st.sets(st.integers(0, 39), max_size=4))
def test_exactly_the_guilty_parts_are_dropped(count, guilty):
    asked = []

    def faults(parts):
        asked.append(tuple(parts))
        return [verification.Failure(str(p), None, "y", "", 1.0, 0.0) for p in parts if p in guilty]

    found = verification.keep_right(range(count), faults)
    assert set(found.dropped) == {g for g in guilty if g < count}
    assert [f.step for f in found.faults] == [str(p) for p in found.dropped]
    assert found.kept == tuple(n for n in range(count) if n not in guilty)
    if not found.dropped:
        assert len(asked) <= 1  # the usual case costs one question


@pytest.mark.parametrize(("bias", "same"), [(2e-7, True), (1e-2, False)])
def test_rounding_noise_of_an_answer_next_to_nothing_is_told_from_a_changed_one(bias, same):
    # A detector answers noise with next to nothing: 2e-7 is then much of its range, and still only rounding.
    before, after = (
        model(const("k", 1e-5) + const("b", b) + "s = Mul(x, k) y = Add(s, b)") for b in (0.0, bias)
    )
    assert verified(before, after).passed is same


def test_a_small_output_is_held_to_a_share_of_itself():
    before, after = (model(const("k", k) + "y = Mul(x, k)") for k in (1e-6, 1.1e-6))
    assert not verified(before, after).passed


def test_the_summary_says_whether_anything_differs():
    same = verified(model("y = Relu(x)"), model("y = Relu(x)"))
    assert (same.max_abs_error, same.summary) == (0.0, "no difference")
    other = verified(model("y = Relu(x)"), model(const("k", 1.5) + "z = Relu(x) y = Mul(z, k)"))
    assert other.summary == "1 failure, largest error 5.0e-01 of the largest output"
    assert verification.Verified().summary == "nothing more to compare"
    assert verification.skipped().summary == "not compared"


def test_the_worst_probe_is_the_one_that_is_told():
    """Black and white reach further than noise does, so that a wrong factor is most wrong on them."""
    before, after = model("y = Relu(x)"), model(const("k", 1.5) + "z = Relu(x) y = Mul(z, k)")
    with EXACT.open(before) as session:
        (noise, *_) = verification.choose(before, session)
    feeds = {"x": noise.feeds["x"] * 100}
    far = type(noise)("data", feeds)
    for probes in ((noise, far), (far, noise)):
        expected = verification.expect(lambda: EXACT.open(before), probes)
        with EXACT.open(after) as made:
            (failure,) = verification.verify(expected, made, step="simplify").failures
        assert failure.measure == "largest error on data"
        assert failure.error == pytest.approx(0.5 * feeds["x"].max(), rel=1e-5)


class Counting:
    """A session whose every answer is a little more than the one before."""

    def __init__(self, session):
        self.session, self.calls = session, 0

    def __getattr__(self, name):
        return getattr(self.session, name)

    def run(self, feeds):
        self.calls += 1
        return {name: array + self.calls for name, array in self.session.run(feeds).items()}


def test_a_source_that_answers_otherwise_each_time_is_found():
    before = model("y = Relu(x)")
    with EXACT.open(before) as session:
        probes = verification.choose(before, session)
        counting = Counting(session)
        expected = verification.expect(lambda: contextlib.nullcontext(counting), probes)
    (failure,) = expected.unsteady
    assert failure.output == "y"
    assert "asked the same again" in failure.text
    assert not verification.expect(lambda: EXACT.open(before), probes).unsteady
