from types import SimpleNamespace

from se_deploy.quantization import sensitivity


def layer(node, macs):
    return SimpleNamespace(node=node, macs=macs)


def test_layers_are_ranked_by_noise_over_cost():
    layers = [layer("cheap", 1), layer("loud", 100), layer("quiet", 100), layer("free", 0)]
    noise = {"cheap": 0.1, "loud": 5.0, "quiet": 0.1, "free": 1e-9}
    ranked = sensitivity.rank(layers, noise, lambda one: one.macs)
    assert [one.node for one in ranked] == ["free", "cheap", "loud", "quiet"]


def test_a_budget_is_not_exceeded_and_what_does_not_fit_is_passed_over():
    ranked = [layer("a", 5), layer("b", 6), layer("c", 4), layer("d", 1)]
    assert [one.node for one in sensitivity.within_budget(ranked, 10)] == ["a", "c", "d"]
    assert [one.node for one in sensitivity.within_budget(ranked, 11)] == ["a", "b"]
    assert sensitivity.within_budget(ranked, -1) == []


def test_each_layer_is_measured_alone():
    class Evaluator:
        def layers(self, quantized):
            (one,) = quantized
            return SimpleNamespace(total_noise=one.macs)

    steps = []
    noise = sensitivity.measure(
        [layer("a", 3), layer("b", 4)], Evaluator(), progress=lambda *step: steps.append(step)
    )
    assert noise == {"a": 3, "b": 4}
    assert steps == [("sensitivity", 1, 2), ("sensitivity", 2, 2)]
