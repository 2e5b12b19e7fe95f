"""Layers that write in place write elsewhere in an export, only where it stays the same network."""

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from se_deploy.frontend import in_place


class Net(nn.Module):
    """Numbers between 0 and 1, which a ReLU6 leaves: answers say nothing of what it overwrites."""

    def __init__(self, forward, layer=None):
        super().__init__()
        self.conv, self.act, self.how = nn.Conv2d(3, 4, 3), layer or nn.ReLU6(inplace=True), forward
        self.register_buffer("kept", torch.full((4, 1, 1), 0.5))

    def forward(self, x):
        return self.how(self, self.conv(x).sigmoid())


class Blend(nn.Module):
    """A user's own layer, which overwrites one thing and reads it under another name."""

    inplace: bool

    def __init__(self):
        super().__init__()
        self.inplace = True

    def forward(self, x):
        y = nn.functional.relu6(x, inplace=self.inplace)
        return x + y


class Lists(Blend):
    """Overwrites what stands in a list, not as the first."""

    def forward(self, x):
        pair = [x * 2, x * 3]
        done = torch._foreach_abs_(pair) if self.inplace else torch._foreach_abs(pair)
        return done[0] + pair[1]


class Other(Blend):
    """Computes the same by other operators."""

    def forward(self, x):
        return x.mul_(2) if self.inplace else x + x


def first_half(net, h):
    a, b = h.chunk(2, 1)
    return net.act(a) + b


READ_AGAIN = {
    "a sum": lambda net, h: h + net.act(h),
    "a sum behind another layer": lambda net, h: h + net.act(net.act(h) * 2),
    "an output": lambda net, h: {"map": h, "score": net.act(h).mean()},
    "a view": lambda net, h: net.act(h.flatten(1)).sum() + h.mean(),
    "the forward of a layer": lambda net, h: h + net.act.forward(h),
    "a buffer": lambda net, h: net.act(net.kept) * h + net.kept,
    "the whole of a part": first_half,
}


def seen(net):
    """Return what the layers' flags are inside the block; they are as before behind it."""
    flagged = [layer for layer in net.modules() if "inplace" in vars(layer)]
    with in_place.out_of_place(net.eval(), (torch.rand(2, 3, 8, 8),), ""):
        inside = {layer.inplace for layer in flagged}
    assert all(layer.inplace for layer in flagged)
    return inside


@pytest.mark.parametrize("case", READ_AGAIN)
def test_what_is_read_after_it_was_overwritten_keeps_its_layers(case):
    assert seen(Net(READ_AGAIN[case])) == {True}


@pytest.mark.parametrize("layer", [Blend, Lists, Other])
def test_a_layer_of_the_users_own_is_looked_into(layer):
    assert seen(Net(lambda net, h: net.act(h), layer())) == {True}


@pytest.mark.parametrize(
    "layer",
    [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Mish, nn.ELU, nn.LeakyReLU, nn.Dropout],
)
def test_what_nothing_reads_again_is_written_elsewhere(layer):
    assert seen(Net(lambda net, h: net.act(h * 2) + h.mean(), layer(inplace=True))) == {False}


def test_layers_of_other_names_are_left_alone():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Hardswish(inplace=True)).eval()
    with in_place.out_of_place(net, (torch.rand(2, 3, 8, 8),), "hardswish"):
        assert (net[1].inplace, net[2].inplace) == (True, False)


def test_the_examples_stay_as_they_are():
    x = torch.randn(2, 3, 8, 8)
    before = x.clone()
    with in_place.out_of_place(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3)), (x,), ""):
        pass
    assert torch.equal(x, before)


def test_a_computed_nan_keeps_the_layers():
    assert seen(Net(lambda net, h: (net.act(h - 2) - 1).log())) == {True}


def test_the_layers_are_restored_where_the_block_fails():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)).eval()

    def fails():
        with in_place.out_of_place(net, (torch.rand(2, 3, 8, 8),), ""):
            assert not net[1].inplace
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fails()
    assert net[1].inplace
