from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from se_deploy import advice, data, exporter, models, se_blocks
from se_deploy.networks import SqueezeExcite
from se_deploy.runtimes.ort import OrtRuntime

CHANNELS, HIDDEN = 12, 6
FITTED = 1e-5  # a least-squares fit of fp32 activations that has an exact solution


def graph_of(module):
    network = models.Network(
        spec="test",
        module=module.eval(),
        examples=(torch.rand(2, CHANNELS, 4, 4),),
        output_names=("output",),
        image=None,
        weights="random",
    )
    return exporter.export(network, opset=17).model


def block(seed=0, **options):
    torch.manual_seed(seed)
    made = SqueezeExcite(CHANNELS, hidden=HIDDEN, **options)
    with torch.no_grad():
        for layer in (made.excitation.fc1, made.excitation.fc2):
            layer.weight.normal_()
            if layer.bias is not None:
                layer.bias.normal_(0, 0.1)
        made.excitation.fc1.bias.add_(0.5)
    return made


def advise(module, tmp_path, count=40, **options):
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(0.3, 1.0, (count, CHANNELS, 4, 4)).astype(np.float32))
    model = graph_of(module)
    with OrtRuntime(threads=1, optimize=False).open(model) as session:
        samples = data.read(path, session.inputs)
    return advice.advise(model, samples, OrtRuntime(threads=1, optimize=False), **options)


@pytest.mark.parametrize("form", ["conv", "linear"])
@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid", "one_plus_tanh"])
def test_dead_and_constant_units_are_found_and_may_go(tmp_path, form, gate):
    made = block(form=form, gate=gate)
    with torch.no_grad():
        made.excitation.fc1.bias[[1, 4]] = -100.0  # behind ReLU always 0
        made.excitation.fc1.weight[2] = 0.0
        made.excitation.fc1.bias[2] = 3.0  # always 3
    (found,) = advise(made, tmp_path).blocks
    assert (found.channels, found.hidden, found.samples) == (CHANNELS, HIDDEN, 40)
    assert found.dead == (1, 4)
    assert found.constant == (2,)
    assert found.exact == 3
    assert found.widths[0].hidden == 3
    assert found.widths[0].max_gate_error < FITTED
    assert found.effective_rank <= 3


def test_the_error_is_that_of_the_block_with_those_units(tmp_path):
    """Rebuild the suggested block in PyTorch from its fit and compare gates on the samples kept back."""
    made = block(gate="sigmoid")
    (found,) = advise(made, tmp_path).blocks
    x = torch.from_numpy(np.load(tmp_path / "x.npy"))
    with torch.no_grad():
        hidden = made.excitation[:2](made.squeezed(x)).flatten(1).double().numpy()
    weight = made.weight_of(2).detach().flatten(1).double().numpy()
    bias = made.excitation.fc2.bias.detach().double().numpy()
    logits = hidden @ weight.T + bias
    best = []
    for width in found.widths:
        errors = []
        for kept in _subsets(HIDDEN, width.hidden):
            design = np.concatenate([hidden[:, kept], np.ones((40, 1))], axis=1)
            layer = np.linalg.lstsq(design[::2], logits[::2], rcond=None)[0]
            gap = 1 / (1 + np.exp(-(design[1::2] @ layer))) - 1 / (1 + np.exp(-logits[1::2]))
            errors.append(np.abs(gap).mean())
        assert any(abs(error - width.mean_gate_error) < FITTED for error in errors)
        best.append(min(errors))
        assert width.mean_gate_error <= 2 * best[-1] + FITTED  # greedy, not exhaustive
    assert [width.hidden for width in found.widths] == [6, 3, 1]
    assert best == sorted(best)


def test_a_doubled_unit_costs_rank_and_not_accuracy(tmp_path):
    made = block()
    with torch.no_grad():
        for unit in (3, 4, 5):
            made.excitation.fc1.weight[unit] = made.excitation.fc1.weight[unit - 3]
            made.excitation.fc1.bias[unit] = made.excitation.fc1.bias[unit - 3]
    (found,) = advise(made, tmp_path).blocks
    assert found.dead == found.constant == ()
    assert found.effective_rank <= 3 + 1e-3
    assert found.widths[1].hidden == 3
    assert found.widths[1].max_gate_error < FITTED
    assert found.suggested is not None
    assert found.suggested <= 3


def test_gates_that_do_nothing_are_counted(tmp_path):
    made = block()
    with torch.no_grad():
        made.excitation.fc2.weight[:5] *= 0
        made.excitation.fc2.bias[:2] = -20.0
        made.excitation.fc2.bias[2:5] = torch.tensor([20.0, 20.0, 0.0])
    (found,) = advise(made, tmp_path).blocks
    assert (found.gates_shut, found.gates_open, found.gates_constant) == (2, 2, 5)


def test_a_tolerance_of_nothing_suggests_the_whole_width_or_none(tmp_path):
    made = block()
    (strict,) = advise(made, tmp_path, tolerance=0.0).blocks
    (loose,) = advise(made, tmp_path, tolerance=1.0).blocks
    assert strict.suggested in {None, HIDDEN}
    assert loose.suggested == 1


def test_a_block_of_one_layer_is_skipped_with_a_reason(tmp_path):
    class OneLayer(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Conv2d(CHANNELS, CHANNELS, 1)

        def forward(self, x):
            return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))

    model = graph_of(OneLayer())
    assert [b.kind for b in se_blocks.find(model).se] == ["ese"]
    found = advise(OneLayer(), tmp_path)
    assert found.blocks == ()
    assert "one learned layer" in found.skipped[0].reason


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=8))
def test_effective_rank_lies_between_one_and_the_count(values):
    singular = np.array(values)
    rank = advice.effective_rank(singular)
    if singular.sum() == 0:
        assert rank == 0
    else:
        assert 1 - 1e-9 <= rank <= np.count_nonzero(singular) + 1e-9


@pytest.mark.parametrize("count", [1, 3, 7])
def test_effective_rank_of_equal_values_is_their_number(count):
    assert advice.effective_rank(np.full(count, 2.5)) == pytest.approx(count)


def _subsets(count, size):
    return [list(kept) for kept in combinations(range(count), size)]
