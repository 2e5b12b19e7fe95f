"""What decides in a check, one decision at a time: sizes that are tried, the worst probe, what is a set."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from se_deploy import comparison, graph, verification
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.schema.input_spec import InputSpec
from se_deploy.verification import Probe, distances, probes, sets, verdict

EXACT = OrtRuntime(threads=1, optimize=False)


def model(inputs, body, outputs="float[A,B,C,D] y"):
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{{body}}}'
    return ir.from_proto(parser.parse_model(text))


def chosen(made, **options):
    with EXACT.open(made) as session:
        return verification.choose(made, session, **options)


def verified(before, after, given, **options):
    expected = verification.expect(lambda: EXACT.open(before), given)
    with EXACT.open(after) as made:
        return verification.verify(expected, made, step="simplify", **options)


def test_sizes_that_are_tried_can_be_halved_as_networks_do():
    """Five times from 32 on: a size that is not a multiple of 32 has another size at each upsampling."""
    for ladder in (probes._SIZES, probes._SMALL_SIZES):
        assert len(set(ladder)) == len(ladder)
        assert all(size % 32 == 0 for size in ladder if size >= 64)
        assert all(size % 8 == 0 for size in ladder if 8 <= size < 64)
        assert all(size.bit_count() == 1 for size in ladder if size < 8)
    assert max(probes._SIZES) == 512, "networks that take nothing below"


def test_one_size_that_fits_is_used_with_two_batches():
    made = model("float[N,3,H,W] x, float[3,4] k", "f = Flatten(x) y = MatMul(f, k)", "float[A,B] y")
    assert {probe.feeds["x"].shape[0] for probe in chosen(made)} == {2, 3}


def test_a_second_size_is_looked_for_where_only_one_batch_fits():
    made = model("float[N,3,H] x, float[3,3,1] k", "y = Concat<axis = 2>(x, k)", "float[A,B,C] y")
    found = [probe.feeds["x"].shape for probe in chosen(made)]
    assert {shape[0] for shape in found} == {3}
    assert len({shape[2] for shape in found}) == 2


def test_sizes_that_were_named_are_kept_while_others_are_looked_for_down_to_1():
    image = InputSpec("x", 3, 40, 24, (0.5, 0.4, 0.3), (0.25, 0.2, 0.1))
    made = model("float[N,3,H,W] x, float[1,K,1,1] m", "y = Mul(x, m)")
    first = chosen(made, image=image)[0].feeds
    assert first["x"].shape[2:] == (40, 24)
    assert first["m"].shape == (1, 1, 1, 1)


def test_noise_of_indices_meets_every_index():
    made = model("int64[N,64] x, float[2,4] t", "y = Gather(t, x)", "float[A,B,C] y")
    noise = next(probe for probe in chosen(made) if probe.kind == "noise").feeds["x"]
    counts = np.bincount(noise.ravel(), minlength=2)
    assert (counts > noise.size / 4).all()


@pytest.mark.parametrize("rows", [2, 3, 9, 10, 11, 99, 100, 101, 29_999, 30_000, 31_000])
def test_the_largest_bound_is_found_whatever_it_is(rows):
    for most in (30_000, 127):
        assert probes._bound(lambda bound: bound <= rows, most) == min(rows, most)


def test_what_a_body_finds_is_found_by_the_node_around_it():
    body = """
        n = If (c) <then_branch = t () => (int64[A,B] s) { s = NonZero(x) },
                    else_branch = e () => (int64[A,B] r) { r = NonZero(k) }>
        i = Cast<to = 1>(n) z = Relu(x)"""
    made = model("bool c, float[2,3] x, float[2,3] k", body, "float[A,B] i, float[2,3] z")
    assert verification.found_by(made) == {"i"}


def relu(factor):
    k = f"k = Constant<value = float {{{factor}}}>() "
    return graph.tidy(model("float[N,4,8,8] x", f"{k}r = Relu(x) y = Mul(r, k)", "float[N,4,8,8] y"))


def test_of_two_probes_the_one_that_is_further_beyond_its_limit_is_told():
    noise = np.random.default_rng(0).uniform(0, 1, (2, 4, 8, 8)).astype(np.float32)
    near, far = Probe("noise", {"x": noise}), Probe("data", {"x": noise * np.float32(1.0001)})
    for given in ((near, far), (far, near)):
        (failure,) = verified(relu(1.0), relu(1.5), given).failures
        assert failure.measure == "largest error on data"


@pytest.mark.parametrize("wrong", ["longer", "shorter"])
def test_another_shape_is_a_failure_whichever_is_larger(wrong):
    bodies = ("y = ReduceMean<axes = [2], keepdims = 1>(x)", "y = Relu(x)")
    before, after = bodies if wrong == "longer" else bodies[::-1]
    given = (Probe("noise", {"x": np.ones((2, 3, 4), np.float32)}),)
    made = [model("float[N,3,4] x", body, "float[A,B,C] y") for body in (before, after)]
    (failure,) = verified(*made, given).failures
    assert "instead of" in failure.measure
    assert "2 x 3 x 4" in failure.measure


def test_the_first_limit_that_is_missed_is_told():
    """Of a sign that is turned both the error and the cosine are off."""
    given = (Probe("noise", {"x": np.ones((2, 4, 8, 8), np.float32)}),)
    (failure,) = verified(relu(1.0), relu(-1.0), given, tolerance=comparison.PRESETS["fp16"]).failures
    assert failure.measure == "largest error on noise"


def test_the_error_of_a_source_of_zeros_is_over_1():
    given = (Probe("noise", {"x": -np.ones((2, 4, 8, 8), np.float32)}),)
    before = graph.tidy(model("float[N,4,8,8] x", "y = Relu(x)", "float[N,4,8,8] y"))
    found = verified(before, graph.tidy(model("float[N,4,8,8] x", "y = Abs(x)", "float[N,4,8,8] y")), given)
    assert (found.max_abs_error, found.max_rel_error) == (1.0, 1.0)


def test_the_users_data_is_judged_before_noise():
    noise, data = (Probe(kind, {"x": np.ones((2, 4, 8, 8), np.float32)}) for kind in ("noise", "data"))
    for given, kind in (((noise,), "noise"), ((noise, data), "data")):
        (failure,) = verified(relu(1.0), relu(-1.0), given, tolerance=comparison.PRESETS["int8"]).failures
        assert failure.measure.endswith(f"on {kind}")


def test_a_set_that_cannot_be_measured_stays_the_worst():
    """A finite error on a later probe is not worse than one that has no number."""
    low = np.arange(4, dtype=np.float32)[:, None] * 20
    boxes = np.concatenate([low, low, low + 10, low + 10], 1)
    want = {"boxes": boxes}
    broken = {"boxes": np.where(np.arange(4)[:, None] == 0, np.nan, boxes).astype(np.float32)}
    pairs = [(want, broken), (want, {"boxes": boxes[1:]})]
    for order in ((0, 1), (1, 0)):
        answers = [pairs[i] for i in order]
        given = [Probe("noise", {}), Probe("data", {})]
        found = sets.judged({"boxes": "boxes"}, given, answers, [[want], [want]])
        assert found.wrong["boxes"].error is None
        assert found.wrong["boxes"].measure.startswith(sets.LARGEST)


def test_rounding_excuses_numbers_and_no_missing_row():
    """Coordinates of 10,000 pixels may be off by one part in 10,000, and that is no share of rows."""
    low = np.arange(16, dtype=np.float32)[:, None] * 600
    want = np.concatenate([low, low, low + 300, low + 300], 1)
    for got, right in ((want * np.float32(1 + 1e-5), True), (want[1:], False)):
        pairs = [({"boxes": want}, {"boxes": got})]
        found = sets.judged({"boxes": "boxes"}, [Probe("noise", {})], pairs, [[{"boxes": want}]])
        assert (found.wrong["boxes"] is None) is right


def side_by_side(kind, want, got):
    (found,) = sets.side_by_side({"y": kind}, {"y": want}, {"y": got}).values()
    return found


def test_scores_without_boxes_are_compared_in_order_of_their_size():
    found = side_by_side("scores", np.float32([0.3, 0.9]), np.float32([0.8, 0.3]))
    np.testing.assert_allclose(found.reference - found.candidate, [0.1, 0], atol=1e-6)
    assert found.unmatched == 0


def test_rows_of_labels_without_boxes_are_the_same_or_have_no_partner():
    """What is sorted column by column is no row any more."""
    rows, mixed = np.array([[0, 9], [1, 3]]), np.array([[0, 3], [1, 9]])
    assert side_by_side("labels", rows, rows[::-1].copy()).unmatched == 0
    assert side_by_side("labels", rows, mixed).unmatched == 8


@pytest.mark.parametrize(
    ("kind", "array", "found"),
    [
        ("boxes", np.zeros((3, 4)), False),  # rows that fill up a fixed number
        ("boxes", np.ones((3, 4)), True),
        ("boxes", np.zeros((0, 4)), False),
        ("scores", np.zeros(3), True),  # a score of 0 is one
        ("scores", np.zeros(0), False),
    ],
)
def test_what_counts_as_found(kind, array, found):
    for pair in ((array, array[:0]), (array[:0], array)):
        notes = sets.not_found({"y": kind}, [tuple({"y": one} for one in pair)])
        assert bool(notes) is not found


def test_a_nan_of_an_output_is_larger_than_any_error():
    assert verdict._larger(1.0, float("inf")) == float("inf")
    assert np.isnan(verdict._larger(float("nan"), 3.0))
    assert verdict._larger(None, 2.0) == 2.0
    assert verdict._larger(None, None) is None


def test_the_change_in_the_last_bits_leaves_integers_alone():
    given = {"n": np.arange(100), "b": np.array([True, False])}
    for seed in range(5):
        moved = distances.perturbed(given, seed)
        assert all(moved[name] is array for name, array in given.items())
