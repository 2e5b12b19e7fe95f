import pytest

pytest.importorskip("torch")


import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from se_deploy.networks.blocks import ACTIVATIONS, GATES, SqueezeExcite, hidden_units

FP32_REORDERED = {"rtol": 1e-5, "atol": 1e-6}  # same fp32 sum in another order

FEW = settings(deadline=None, max_examples=25)


def block_and_input(seed=0, channels=12, **options):
    torch.manual_seed(seed)
    block = SqueezeExcite(channels, **{"ratio": 3, **options}).eval()
    for module in block.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return block, torch.randn(2, channels, 5, 7)


@FEW
@given(
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    gate=st.sampled_from(sorted(GATES)),
    bias=st.booleans(),
    norm=st.booleans(),
    residual=st.booleans(),
    depth=st.integers(2, 5),
    seed=st.integers(0, 99),
)
def test_both_forms_are_one_function(*, activation, gate, bias, norm, residual, depth, seed):
    block, x = block_and_input(
        seed, activation=activation, gate=gate, bias=bias, norm=norm, residual=residual, depth=depth
    )
    options = {"activation": activation, "gate": gate, "bias": bias, "norm": norm}
    options |= {"residual": residual, "depth": depth}
    linear, _ = block_and_input(seed, **options, form="linear")
    linear.load_state_dict(block.state_dict())
    torch.testing.assert_close(linear(x), block(x), **FP32_REORDERED)
    back, _ = block_and_input(seed + 1, **options)
    back.load_state_dict(linear.state_dict())
    assert {k: v.shape for k, v in back.state_dict().items()} == {
        k: v.shape for k, v in block.state_dict().items()
    }
    torch.testing.assert_close(back(x), block(x), rtol=0, atol=0)


def test_a_block_is_the_published_formula():
    block, x = block_and_input()
    w1, w2 = (block.weight_of(i).squeeze() for i in (1, 2))
    b1, b2 = block.excitation.fc1.bias, block.excitation.fc2.bias
    gate = torch.sigmoid(torch.relu(x.mean((2, 3)) @ w1.T + b1) @ w2.T + b2)
    torch.testing.assert_close(block(x), x * gate[:, :, None, None], **FP32_REORDERED)


def test_a_state_dict_of_the_wrong_width_is_refused():
    narrow, _ = block_and_input(ratio=6)
    wide, _ = block_and_input(ratio=3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        wide.load_state_dict(narrow.state_dict())


@pytest.mark.parametrize(
    ("channels", "ratio", "divisor", "hidden"),
    [
        (256, 16, 1, 16),
        (18, 16, 1, 1),
        (8, 16, 1, 1),
        (72, 4, 8, 24),
        (16, 4, 8, 8),
        (88, 4, 8, 24),
        (960, 4, 8, 240),
    ],
)
def test_hidden_units_follow_hu_and_mobilenet(channels, ratio, divisor, hidden):
    assert hidden_units(channels, ratio, divisor) == hidden


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 1}, "at least two"),
        ({"form": "gemm"}, "conv, linear"),
        ({"activation": "swich"}, "relu"),
        ({"gate": "softsign"}, "hardsigmoid"),
    ],
)
def test_unknown_choices_are_refused_with_the_known_ones(options, message):
    with pytest.raises(ValueError, match=message):
        SqueezeExcite(8, **options)
