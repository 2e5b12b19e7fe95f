import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from layer_graphs import image, model_of, weights
from ptq_graphs import RUNTIME, samples_of

from se_deploy import graph
from se_deploy.quantization import QuantizeOptions, equalization
from se_deploy.quantization.evaluator import Evaluation, Evaluator
from se_deploy.quantization.job import prepare


def scaled(factor):
    return graph.tidy(
        ir.from_onnx_text(
            '<ir_version: 10, opset_import: ["" : 20]>\n'
            f"g (float[N,4] x) => (float[N,4] y) <float k = {{{factor}}}> "
            "{ h = Mul(x, k) y = Softmax(h) }"
        )
    )


def evaluator(tmp_path, x, labels=None):
    samples = samples_of(tmp_path, x=x)
    if labels is not None:
        samples = dataclasses.replace(samples, labels=np.asarray(labels))
    return Evaluator.of(scaled("1.0"), ("h",), samples, RUNTIME, RUNTIME)


def test_noise_is_the_power_of_the_error_over_that_of_the_tensor(tmp_path):
    x = np.random.default_rng(0).standard_normal((9, 4))
    evaluation = evaluator(tmp_path, x)(scaled("1.1"))
    assert evaluation.noise["h"] == pytest.approx(0.01, rel=1e-4)
    assert set(evaluation.sqnr_db()) == {"y"}
    assert evaluation.score_db == pytest.approx(20, abs=0.01), "of the last layers, not of the softmax"
    assert evaluation.total_noise == pytest.approx(sum(evaluation.noise.values()))
    assert evaluation.accuracy is None


def test_the_score_is_that_of_the_outputs_where_nothing_stands_behind_the_last_layers():
    evaluation = Evaluation(("y", "z"), {"y": 0.1, "z": 0.001}, None)
    assert evaluation.score_db == pytest.approx((10 + 30) / 2)


@pytest.mark.parametrize(
    ("gains", "sure"),
    [([1.0, 1.2, 0.9, 1.1], True), ([9.0, -1.0, -1.0, -2.0], False), ([0.0, 0.0, 0.0, 0.0], False)],
)
def test_a_gain_is_sure_where_the_samples_agree(gains, sure):
    plain = Evaluation(("y",), {"y": 0.1}, None, np.zeros(4))
    other = Evaluation(("y",), {"y": 0.05}, None, np.array(gains))
    assert other.surely_better(plain) is sure


def test_few_samples_must_agree_more():
    one, two, many = ([2.0], [2.0, 1.0], [2.0, 1.0] * 20)

    def sure(gains):
        plain = Evaluation(("y",), {"y": 0.1}, None, np.zeros(len(gains)))
        return Evaluation(("y",), {"y": 0.05}, None, np.array(gains)).surely_better(plain)

    assert not sure(one), "one sample says nothing of how samples differ"
    assert not sure(two)
    assert sure(many)


def test_what_is_worse_on_the_whole_is_not_surely_better():
    plain = Evaluation(("y",), {"y": 0.1}, None, np.zeros(4))
    other = Evaluation(("y",), {"y": 0.2}, None, np.array([1.0, 1.2, 0.9, 1.1]))
    assert not other.surely_better(plain)


def test_each_sample_has_a_ratio_of_its_own(tmp_path):
    x = np.random.default_rng(0).standard_normal((9, 4))
    evaluation = evaluator(tmp_path, x)(scaled("1.1"))
    np.testing.assert_allclose(evaluation.by_sample_db, np.full(9, 20), atol=0.01)


def test_accuracy_counts_the_largest_entries_over_all_batches(tmp_path):
    x = np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3, 0, 1]]
    labels = [0, 1, 2, 3, 0, 1, 2, 3, 1, 2]  # the last two differ
    one = evaluator(tmp_path, x, labels)
    assert one.exact().accuracy == pytest.approx(0.8)
    assert one(scaled("2.0")).accuracy == pytest.approx(0.8)
    assert one(scaled("-1.0")).accuracy == pytest.approx(0.1)  # of equal entries the first is the largest
    assert one.exact().noise == {"y": 0, "h": 0}


@pytest.mark.parametrize(
    ("body", "divided"),
    [
        ("a = Conv(x, w) t = Relu(a) y = Conv(t, v)", False),
        ("a = Conv(x, w) t = Relu(a) u = Conv(t, v) z = Add(u, t) y = Mul(z, k)", True),
    ],
    ids=["what is compared stays", "the last layer's output is divided"],
)
def test_references_are_those_of_the_equalized_network(tmp_path, body, divided):
    constants = [("w", weights(6, 4, 1, 1)), ("v", weights(6, 6, 1, 1)), ("k", weights(6, 1, 1))]
    model = model_of(body, [(n, a) for n, a in constants if f" {n})" in body], output="float[N,6,8,8] y")
    job = prepare(model, samples_of(tmp_path, x=image()), (RUNTIME, RUNTIME), QuantizeOptions())
    tensors = {layer.tensor for layer in job.layers}
    (group,) = equalization.groups(job.model, tensors, pointwise=True)
    assert any(name in group.tensors for name in job.evaluator.tensors) is divided
    equalized = job.equalized({group: np.geomspace(0.2, 3, group.channels)})
    assert (equalized.evaluator.references is job.evaluator.references) is not divided
    assert max(equalized.evaluator(equalized.model).noise.values()) < 1e-9
