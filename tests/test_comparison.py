from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

from se_deploy import comparison, graph
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.errors import BadInput
from se_deploy.protocols import TensorSpec


@dataclass
class Answers:
    """A session whose outputs are functions of its input."""

    functions: dict
    input_name: str = "input"

    @property
    def inputs(self):
        return (TensorSpec(self.input_name, np.dtype(np.float32), (None, 4)),)

    @property
    def outputs(self):
        return tuple(TensorSpec(name, np.dtype(np.float32), (None, 4)) for name in self.functions)

    def run(self, feeds):
        return {name: f(feeds[self.input_name]) for name, f in self.functions.items()}


def batches(count, seed=0):
    return [{"input": x} for x in np.random.default_rng(seed).standard_normal((count, 8, 4), np.float32)]


@settings(deadline=None, max_examples=30)
@given(noise=st.floats(1e-6, 0.5), seed=st.integers(0, 99))
def test_streaming_equals_whole_array_arithmetic(noise, seed):
    data = batches(3, seed)
    x = np.concatenate([b["input"] for b in data]).astype(np.float64)
    rng = np.random.default_rng(seed)
    error = rng.standard_normal(x.shape) * noise
    errors = iter(np.split(error, 3))
    parity = comparison.compare(
        Answers({"y": lambda v: v}), Answers({"y": lambda v: v + next(errors)}), data
    ).outputs[0]
    y = x + error
    assert parity.max_abs == pytest.approx(np.abs(error).max(), rel=1e-6)
    assert parity.max_rel == pytest.approx(np.abs(error).max() / np.abs(x).max(), rel=1e-6)
    cosine = (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())
    assert parity.cosine == pytest.approx(cosine, abs=1e-9)
    assert parity.sqnr_db == pytest.approx(10 * math.log10((x * x).sum() / (error * error).sum()), abs=1e-4)
    assert parity.top1_agreement == pytest.approx((x.argmax(1) == y.argmax(1)).mean())


def test_accuracy_is_counted_for_both():
    data = batches(2)
    labels = np.concatenate([b["input"].argmax(1) for b in data])
    parity = comparison.compare(
        Answers({"y": lambda v: v}), Answers({"y": lambda v: -v}), data, labels=labels
    )
    assert (parity.reference_accuracy, parity.candidate_accuracy, parity.samples) == (1.0, 0.0, 16)


def test_accuracy_is_counted_on_the_index_of_the_best_class_too():
    data = batches(2)
    labels = np.concatenate([b["input"].argmax(1) for b in data])
    first = labels[0]
    parity = comparison.compare(
        Answers({"class": lambda v: v.argmax(1), "map": lambda v: v}),
        Answers({"class": lambda v: np.full(len(v), first), "map": lambda v: v}),
        data,
        labels=labels,
    )
    share = (labels == first).mean()
    assert (parity.reference_accuracy, parity.candidate_accuracy) == (1.0, pytest.approx(share))
    assert (parity.outputs[0].kind, parity.outputs[0].agreement) == ("labels", pytest.approx(share))


def test_identical_outputs_pass_every_preset():
    parity = comparison.compare(Answers({"y": lambda v: v}), Answers({"y": lambda v: v}), batches(1))
    assert parity.outputs[0].sqnr_db == comparison.IDENTICAL_DB
    assert all(not t.failures(parity.outputs[0]) for t in comparison.PRESETS.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_never_passes(bad):
    def broken(v):
        y = v.copy()
        y[0, 0] = bad
        return y

    parity = comparison.compare(Answers({"y": lambda v: v}), Answers({"y": broken}), batches(2))
    assert all(t.failures(parity.outputs[0]) for t in comparison.PRESETS.values())


@pytest.mark.parametrize("shape", [(8, 7), (2, 7, 4, 4), (2, 1, 4, 4)])
def test_what_is_no_number_agrees_with_nothing(shape):
    def lost(v):
        return np.full(shape, np.nan, np.float32)

    labels = np.zeros(8, int)
    parity = comparison.compare(Answers({"y": lost}), Answers({"y": lost}), batches(1), labels=labels)
    output = parity.outputs[0]
    assert not any((output.top1_agreement, output.top5_agreement, output.agreement, output.iou))
    assert not parity.reference_accuracy
    assert not parity.candidate_accuracy
    assert not parity.disagreements


def test_one_lost_score_is_no_class():
    def lost(v):
        return np.where(np.arange(4) == 0, np.nan, v).astype(np.float32)

    def first(v):
        return np.float32([[9, 0, 0, 0]]).repeat(len(v), 0)

    labels = np.zeros(8, int)
    parity = comparison.compare(Answers({"y": first}), Answers({"y": lost}), batches(1), labels=labels)
    assert parity.outputs[0].top1_agreement == 0
    assert (parity.reference_accuracy, parity.candidate_accuracy) == (1, 0)


def test_a_preset_is_loose_enough_for_its_precision_and_no_looser():
    def half(v):
        return (v * np.float32(1 + 2**-9)).astype(np.float32)

    parity = comparison.compare(Answers({"y": lambda v: v}), Answers({"y": half}), batches(2)).outputs[0]
    assert comparison.PRESETS["fp32"].failures(parity)
    assert not comparison.PRESETS["fp16"].failures(parity)


def test_a_name_that_both_have_is_never_matched_with_another():
    pairs = comparison.paired(["a", "b", "c"], ["b", "x", "y"], "outputs")
    assert pairs == {"a": "x", "b": "b", "c": "y"}


def test_names_are_matched_else_positions():
    swapped = Answers({"b": lambda v: v * 2, "a": lambda v: v}, input_name="x")
    parity = comparison.compare(Answers({"a": lambda v: v, "b": lambda v: v * 2}), swapped, batches(1))
    assert [o.max_abs for o in parity.outputs] == [0.0, 0.0]
    renamed = Answers({"p": lambda v: v, "q": lambda v: v * 2})
    parity = comparison.compare(Answers({"a": lambda v: v, "b": lambda v: v * 2}), renamed, batches(1))
    assert [o.max_abs for o in parity.outputs] == [0.0, 0.0]


def test_another_network_is_refused():
    with pytest.raises(BadInput, match="2 outputs"):
        comparison.compare(
            Answers({"a": lambda v: v, "b": lambda v: v}), Answers({"a": lambda v: v}), batches(1)
        )
    with pytest.raises(BadInput, match="shapes"):
        comparison.compare(Answers({"a": lambda v: v}), Answers({"a": lambda v: v[:, :2]}), batches(1))
    with pytest.raises(BadInput, match="no sample"):
        comparison.compare(Answers({"a": lambda v: v}), Answers({"a": lambda v: v}), [])


def test_unknown_preset_is_refused_and_limits_are_replaced():
    with pytest.raises(BadInput, match="fp8"):
        comparison.tolerance("fp8")
    assert comparison.tolerance("int8", atol=0.5).atol == 0.5


TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] y) {{
    a = Relu(x)
    b = {op}(a)
    y = Neg(b)
}}"""


def model(op):
    return graph.tidy(ir.from_proto(parser.parse_model(TEXT.format(op=op))))


def test_first_divergence_names_the_first_tensor_that_differs():
    feeds = batches(1)[0]
    feeds = {"x": feeds["input"]}
    found = comparison.first_divergence(
        model("Tanh"), model("Sigmoid"), feeds, runtime=OrtRuntime(optimize=False), limit=1e-3
    )
    assert found is not None
    assert (found.tensor, found.op_type) == ("b", "Sigmoid")
    same = comparison.first_divergence(
        model("Tanh"), model("Tanh"), feeds, runtime=OrtRuntime(optimize=False), limit=1e-6
    )
    assert same is None


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), noise=st.floats(0.0, 2.0))
def test_the_surest_answers_that_differ_are_kept(seed, noise):
    data = batches(4, seed)
    x = np.concatenate([b["input"] for b in data])
    y = x + np.random.default_rng(seed).standard_normal(x.shape).astype(np.float32) * noise
    parts = iter(np.split(y, 4))
    found = comparison.compare(
        Answers({"y": lambda v: v}), Answers({"y": lambda _: next(parts)}), data, kinds={"y": "logits"}
    ).disagreements
    differing = np.flatnonzero(x.argmax(1) != y.argmax(1))
    margins = {int(i): float(x[i].max() - x[i, y[i].argmax()]) for i in differing}
    wanted = sorted(margins, key=lambda i: (-margins[i], i))[:12]
    assert [one.sample for one in found] == wanted
    for one in found:
        assert (one.reference, one.candidate) == (x[one.sample].argmax(), y[one.sample].argmax())
        assert one.margin == pytest.approx(margins[one.sample])


def test_labels_that_differ_are_kept_without_a_margin():
    feeds = [{"input": np.zeros((3, 4), np.float32)}]
    ours, theirs = (
        Answers({"y": lambda _: np.array([1, 2, 3])}),
        Answers({"y": lambda _: np.array([1, 5, 4])}),
    )
    found = comparison.compare(ours, theirs, feeds, kinds={"y": "labels"}).disagreements
    assert [(o.sample, o.reference, o.candidate, o.margin) for o in found] == [
        (1, 2, 5, None),
        (2, 3, 4, None),
    ]
