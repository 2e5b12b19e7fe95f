import pytest

pytest.importorskip("torch")

import copy
import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from se_deploy.networks import AdaptiveSE, SqueezeExcite, freeze
from se_deploy.networks.adaptive import cost

FP32_REORDERED = {"rtol": 1e-5, "atol": 1e-6}  # same fp32 sum in another order


def adaptive(theta, seed=0, channels=16, **options):
    torch.manual_seed(seed)
    block = AdaptiveSE(channels, **options).eval()
    with torch.no_grad():
        block.mask.theta.fill_(theta)
        for module in block.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_()
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    return block


@settings(deadline=None, max_examples=30)
@given(
    theta=st.floats(-6, 6),
    softness=st.sampled_from([1.0, 2.0, 5.5]),
    form=st.sampled_from(["conv", "linear"]),
    activation=st.sampled_from(["relu", "prelu", "gelu", "hardswish"]),
    bias=st.booleans(),
    norm=st.booleans(),
    residual=st.booleans(),
    seed=st.integers(0, 99),
)
def test_freezing_keeps_the_function(*, theta, softness, form, activation, bias, norm, residual, seed):
    block = adaptive(
        theta,
        seed,
        softness=softness,
        form=form,
        activation=activation,
        bias=bias,
        norm=norm,
        residual=residual,
    )
    network = nn.Sequential(nn.Identity(), block)
    x = torch.randn(3, 16, 4, 5)
    before = network(x)
    (found,) = freeze(network)
    assert type(network[1]) is SqueezeExcite
    assert (found.module, found.channels, found.available) == ("1", 16, 8)
    assert dataclasses.asdict(found) == {
        "module": "1",
        "channels": 16,
        "hidden": found.hidden,
        "available": 8,
        "ratio": found.ratio,
    }
    assert network[1].weight_of(1).shape[0] == found.hidden == 16 / found.ratio
    torch.testing.assert_close(network(x), before, **FP32_REORDERED)


def test_the_width_is_what_freezing_keeps():
    for theta in (-9.0, -1.0, 0.0, 1.0, 9.0):
        block = adaptive(theta)
        used = int((block.mask.weights() > 0).sum())
        assert block.frozen().hidden == used
        assert 1 <= used <= block.hidden


def test_the_mask_is_ordered_and_has_a_gradient():
    block = adaptive(0.0)
    weights = block.mask.weights()
    assert bool((weights[:-1] >= weights[1:]).all())
    block(torch.randn(2, 16, 3, 3)).square().sum().backward()
    assert block.mask.theta.grad.abs() > 0


def test_cost_falls_with_the_width_and_pulls_it_down():
    wide, narrow = nn.Sequential(adaptive(3.0)), nn.Sequential(adaptive(-3.0))
    assert 1 / 8 < cost(narrow) < cost(wide) < 1
    cost(wide).backward()
    assert wide[0].mask.theta.grad > 0  # descending makes the width smaller
    with pytest.raises(ValueError, match="no adaptive block"):
        cost(nn.Sequential(SqueezeExcite(8)))


def test_freezing_twice_changes_nothing_more_and_spares_static_blocks():
    network = nn.Sequential(adaptive(0.0), SqueezeExcite(16))
    static = copy.deepcopy(network[1].state_dict())
    assert len(freeze(network)) == 1
    assert freeze(network) == ()
    for name, value in network[1].state_dict().items():
        torch.testing.assert_close(value, static[name], rtol=0, atol=0)


def test_a_block_cannot_freeze_itself_in_place():
    with pytest.raises(TypeError, match="frozen"):
        freeze(adaptive(0.0))
