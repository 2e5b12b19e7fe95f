from types import SimpleNamespace

import pytest

from se_deploy.errors import BadInput
from se_deploy.quantization import AccuracyGoal, mixed_precision
from se_deploy.quantization.evaluator import Evaluation


class Network:
    """Layers that cost accuracy only while one of the first `bad` of them is in INT8."""

    def __init__(self, count, bad):
        self.ranked = [SimpleNamespace(node=str(i), macs=10 * (i + 1)) for i in range(count)]
        self.bad = {str(i) for i in range(bad)}
        self.tried = []

    def layers(self, planned):
        self.tried.append(len(planned))
        worst = 10 if self.bad & {layer.node for layer in planned} else 40
        return evaluation(worst, accuracy=0.5 if worst == 10 else 0.9)

    def exact(self):
        return evaluation(300, accuracy=0.9)


def evaluation(sqnr_db, accuracy=None, **others):
    noise = {"y": 10 ** (-sqnr_db / 10)} | {name: 10 ** (-db / 10) for name, db in others.items()}
    return Evaluation(tuple(noise), noise, accuracy)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
def test_the_fewest_layers_that_reach_the_goal_are_left_in_float(count):
    for needed in range(count + 1):
        network = Network(count, needed)
        found = mixed_precision.fewest_float_layers(
            network.ranked, network.ranked, network, AccuracyGoal(min_sqnr_db=30)
        )
        assert found == needed
        assert len(network.tried) <= 2 + count.bit_length(), "it bisects"


def test_a_goal_that_not_even_all_in_float_reach_has_no_number():
    network = Network(4, 2)
    goal = AccuracyGoal(min_sqnr_db=50)
    assert mixed_precision.fewest_float_layers(network.ranked, network.ranked, network, goal) is None


def test_a_goal_of_no_drop_is_reached_too():
    network = Network(5, 3)
    goal = AccuracyGoal(max_drop=0)
    assert mixed_precision.fewest_float_layers(network.ranked, network.ranked, network, goal) == 3


@pytest.mark.parametrize(
    ("goal", "quantized", "reached"),
    [
        (AccuracyGoal(min_sqnr_db=30), evaluation(30.001, z=30.5), True),
        (AccuracyGoal(min_sqnr_db=30), evaluation(35, z=29.9), False),  # the worst output counts
        (AccuracyGoal(max_drop=1), evaluation(10, accuracy=0.8901), True),
        (AccuracyGoal(max_drop=1), evaluation(10, accuracy=0.8899), False),
        (AccuracyGoal(min_sqnr_db=30, max_drop=1), evaluation(29, accuracy=0.9), False),
        (AccuracyGoal(min_sqnr_db=30, max_drop=1), evaluation(31, accuracy=0.8), False),
        (AccuracyGoal(), evaluation(0), True),
    ],
)
def test_a_goal_asks_for_the_worst_output_and_the_drop(goal, quantized, reached):
    assert goal.reached(quantized, evaluation(300, accuracy=0.9)) is reached


def test_a_drop_without_labels_is_refused():
    with pytest.raises(BadInput, match="labels"):
        AccuracyGoal(max_drop=1).reached(evaluation(30), evaluation(300))


def test_the_curve_goes_from_no_layer_to_all():
    network = Network(12, 4)
    curve = mixed_precision.tradeoff_curve(
        network.ranked, network.ranked, network, total_macs=1000, cost=lambda layer: layer.macs / 100
    )
    assert [point.float_layers for point in curve] == [0, 2, 4, 6, 8, 10, 12]
    assert [point.sqnr_db for point in curve] == pytest.approx([10, 10, 40, 40, 40, 40, 40])
    assert curve[1].macs_int8_fraction == (780 - 10 - 20) / 1000
    assert curve[1].added_ms == pytest.approx(0.3)
    assert curve[-1].macs_int8_fraction == 0
    assert [point.accuracy for point in curve][:3] == [0.5, 0.5, 0.9]


def test_a_short_curve_has_each_number_once():
    network = Network(2, 0)
    curve = mixed_precision.tradeoff_curve(network.ranked, network.ranked, network, 100, lambda _: 1.0)
    assert [point.float_layers for point in curve] == [0, 1, 2]
