"""Checkpoints as wrappers, trainers and averages leave them: taken where just this network is in them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.optim.swa_utils import AveragedModel

from se_deploy.errors import BadModel
from se_deploy.frontend import checkpoints


def small(classes=3):
    return nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes))


@pytest.fixture
def trained():
    torch.manual_seed(1)
    return small()


def loaded(tmp_path, content, into=None):
    """What is said, once `content` is in a network of other weights, and that network."""
    path = tmp_path / "w.pth"
    torch.save(content, path)
    torch.manual_seed(2)
    network = into or small()
    return checkpoints.load(network, path), network


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


class Trainer(nn.Module):
    """As a LightningModule holds its network."""

    def __init__(self, name, network):
        super().__init__()
        setattr(self, name, network)


def test_an_average_of_torch_is_taken_and_said(tmp_path, trained):
    average = AveragedModel(trained)
    for _ in range(2):
        average.update_parameters(trained)
    notes, network = loaded(tmp_path, average.state_dict())
    assert same(network, trained)
    assert notes == ("'w.pth' holds an average of the network's weights, which was taken (2 updates)",)
    (note,), network = loaded(
        tmp_path, {"epoch": 3, "ema": AveragedModel(nn.DataParallel(trained)).state_dict()}
    )
    assert same(network, trained)
    assert "never updated" in note


def wrapped(trained):
    state = trained.state_dict()
    return {
        "DataParallel": nn.DataParallel(trained).state_dict(),
        "torch.compile": torch.compile(trained).state_dict(),
        "compiled in parallel": nn.DataParallel(torch.compile(trained)).state_dict(),
        "parallel, then compiled": torch.compile(nn.DataParallel(trained)).state_dict(),
        "FSDP": {f"_fsdp_wrapped_module.{key}": value for key, value in state.items()},
        "a wrapped part": {key.replace("0.", "0._orig_mod.", 1): value for key, value in state.items()},
        "Lightning, model": {"state_dict": Trainer("model", trained).state_dict(), "epoch": 1},
        "Lightning, net": {"state_dict": Trainer("net", trained).state_dict(), "epoch": 1},
        "Lightning, compiled": {"state_dict": Trainer("net", torch.compile(trained)).state_dict()},
        "any name": Trainer("classifier", trained).state_dict(),
        "timm's average": {"state_dict_ema": state, "epoch": 1, "arch": "small"},
        "DeepSpeed": {"module": state, "global_steps": 9},
        "nested twice": {"model": {"state_dict": state}},
    }


@pytest.mark.parametrize("wrapper", wrapped(small()))
def test_wrappers_are_seen_through(tmp_path, trained, wrapper):
    notes, network = loaded(tmp_path, wrapped(trained)[wrapper])
    assert same(network, trained)
    assert notes == ()


def test_what_stands_beside_the_network_is_said(tmp_path, trained):
    trainer = Trainer("net", trained)
    trainer.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))
    (note,), network = loaded(tmp_path, {"state_dict": trainer.state_dict()})
    assert same(network, trained)
    assert note == "'w.pth' holds the weights under 'net.', which were taken; left: 'criterion.weight'"


def test_two_sets_of_weights_are_not_chosen_between(tmp_path, trained):
    both = Trainer("student", trained)
    both.teacher = small()
    with pytest.raises(BadModel, match=r"several sets .* under 'student\.' and 'teacher\.'"):
        loaded(tmp_path, both.state_dict())
    both.teacher = trained  # one network by two names is one set
    notes, network = loaded(tmp_path, both.state_dict())
    assert same(network, trained)
    assert notes == ()


def test_a_part_of_the_weights_is_never_enough(tmp_path, trained):
    state = AveragedModel(trained).state_dict()
    del state["module.3.bias"]
    with pytest.raises(BadModel, match=r"1 missing \(3\.bias\)"):
        loaded(tmp_path, state)
    with pytest.raises(BadModel, match=r"1 unexpected \(4\.bias\)"):
        loaded(
            tmp_path, {f"model.{k}": v for k, v in {**trained.state_dict(), "4.bias": torch.ones(3)}.items()}
        )


def test_another_head_in_a_wrapper_is_named(tmp_path):
    with pytest.raises(BadModel) as caught:
        loaded(tmp_path, AveragedModel(small(5)).state_dict())
    assert "num_classes=5" in caught.value.hint


def test_a_network_with_a_part_called_as_wrappers_call_theirs_keeps_it(tmp_path, trained):
    notes, network = loaded(
        tmp_path, nn.DataParallel(Trainer("module", trained)).state_dict(), Trainer("module", small())
    )
    assert same(network, Trainer("module", trained))
    assert notes == ()


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # users still have such files
def test_a_torchscript_network_is_no_checkpoint_and_says_how_it_becomes_one(tmp_path, trained):
    path = tmp_path / "w.pt"
    torch.jit.save(torch.jit.trace(trained.eval(), torch.zeros(1, 1, 2, 2)), path)
    with pytest.raises(BadModel, match="is a TorchScript network") as caught:
        checkpoints.load(small(), path)
    assert "torch.jit.load(FILE).state_dict()" in caught.value.hint
    notes, network = loaded(tmp_path, torch.jit.load(path).state_dict())  # as the hint says
    assert same(network, trained)
    assert notes == ()
