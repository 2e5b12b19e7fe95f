from __future__ import annotations

import pytest

pytest.importorskip("torch")

import pickle

import torch
from safetensors.torch import save_file
from torch import nn

from se_deploy.errors import BadInput, BadModel
from se_deploy.frontend import zoo


def small(num_classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, num_classes))


@pytest.fixture
def spec(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def small(num_classes=3):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, num_classes))\n"
        "def two():\n"
        "    return 2\n"
    )
    monkeypatch.chdir(tmp_path)
    return "nets.py:small"


def load(spec, **options):
    return zoo.load(spec, input_size=(1, 4, 4), **options)


def test_a_network_is_in_eval_mode_and_says_that_its_weights_are_random(spec):
    network = load(spec)
    assert not network.module.training
    assert network.output_names == ("output",)
    assert network.image is not None
    assert network.image.shape == (1, 4, 4)
    assert "random" in network.warnings[0]


def test_the_seed_decides_random_weights(spec):
    one, same, other = load(spec, seed=1), load(spec, seed=1), load(spec, seed=2)
    x = torch.ones(1, 1, 4, 4)
    assert torch.equal(one.module(x), same.module(x))
    assert not torch.equal(one.module(x), other.module(x))


def test_a_module_by_import_path_and_constructor_arguments(spec):
    network = load("nets:small", model_args={"num_classes": 7})
    assert network.module(torch.zeros(1, 1, 4, 4)).shape == (1, 7)


@pytest.mark.parametrize("form", ["safetensors", "pth", "nested", "prefixed", "nested ema"])
def test_checkpoints_load_in_every_form(spec, tmp_path, form):
    state = {k: v + 1 for k, v in small().state_dict().items()}
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "pth":
        torch.save(state, path)
    elif form == "nested":
        torch.save({"state_dict": state, "epoch": 3}, path)
    elif form == "nested ema":
        torch.save({"model_ema": state, "epoch": 3}, path)
    else:
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    network = load(spec, checkpoint=path)
    assert torch.equal(network.module.state_dict()["1.weight"], state["1.weight"])
    assert network.warnings == ()
    assert "w." in network.weights


def test_another_head_is_refused_with_the_argument_that_mends_it(spec, tmp_path):
    torch.save(small(5).state_dict(), tmp_path / "w.pth")
    with pytest.raises(BadModel, match="another shape") as caught:
        load(spec, checkpoint=tmp_path / "w.pth")
    assert "num_classes=5" in caught.value.hint
    assert load(spec, checkpoint=tmp_path / "w.pth", model_args={"num_classes": 5}).warnings == ()


def test_missing_and_unexpected_keys_are_listed(spec, tmp_path):
    state = small().state_dict()
    state["stranger"] = state.pop("3.bias")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BadModel, match=r"1 missing \(3.bias\); 1 unexpected \(stranger\)"):
        load(spec, checkpoint=tmp_path / "w.pth")


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize("content", ["bomb", "list", "junk", "empty", "number"])
def test_a_pickle_that_is_no_state_dict_is_refused_and_never_executed(spec, tmp_path, content):
    path = tmp_path / "w.pth"
    if content == "bomb":
        path.write_bytes(pickle.dumps({"1.weight": Bomb()}))
    elif content == "list":
        torch.save([torch.zeros(1)], path)
    elif content == "number":
        torch.save({"epoch": 3}, path)
    else:
        path.write_bytes(b"" if content == "empty" else b"junk")
    with pytest.raises(BadModel, match=r"w\.pth"):
        load(spec, checkpoint=path)
    assert not (tmp_path / "exploded").exists()


def test_nan_weights_are_refused(spec, tmp_path):
    state = small().state_dict()
    state["1.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BadModel, match="NaN"):
        load(spec, checkpoint=tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("nonsense", "names no network"),
        ("timm:no_such_net_at_all", "timm has no model"),
        ("torchvision:no_such_net", "torchvision has no model"),
        ("se_deploy:no_such_net", "ships"),
        ("no_such_package:f", "cannot be imported"),
        ("nets.py:missing", "no callable"),
        ("nets.py:two", "no torch.nn.Module"),
        ("absent.py:f", "is no file"),
        ("absent.pt2", "is no file"),
    ],
)
def test_unknown_specifications_are_refused(spec, bad, message):
    assert spec
    with pytest.raises(BadModel, match=message):
        load(bad)


def test_near_names_are_suggested():
    with pytest.raises(BadModel) as caught:
        zoo.load("timm:seresnet5")
    assert "seresnet50" in caught.value.hint


def test_wrong_constructor_arguments_and_sizes_are_the_users(spec):
    with pytest.raises(BadInput, match="colour"):
        load(spec, model_args={"colour": 1})
    with pytest.raises(BadInput, match="does not accept an input of 2x1x5x5"):
        zoo.load(spec, input_size=(1, 5, 5))
    with pytest.raises(BadInput, match="does not say what it is fed"):
        zoo.load(spec)


def test_an_exported_program_brings_its_own_examples(tmp_path):
    program = torch.export.export(small().eval(), (torch.zeros(2, 1, 4, 4),))
    torch.export.save(program, tmp_path / "m.pt2")
    network = zoo.load(str(tmp_path / "m.pt2"))
    assert network.examples[0].shape == (2, 1, 4, 4)
    assert network.output_names == ("output",)


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        ("--checkpoint", {"checkpoint": "w.pth"}),
        ("--pretrained", {"pretrained": True}),
        ("--model-arg", {"model_args": {"num_classes": 5}}),
        ("--input-size 1x8x8", {"input_size": (1, 8, 8)}),
    ],
)
def test_what_cannot_change_a_program_is_refused_and_not_left_unread(tmp_path, flag, options):
    torch.export.save(torch.export.export(small().eval(), (torch.zeros(2, 1, 4, 4),)), tmp_path / "m.pt2")
    assert zoo.load(str(tmp_path / "m.pt2"), input_size=(1, 4, 4)).image.shape == (1, 4, 4)
    with pytest.raises(BadInput, match=f"^{flag} cannot change"):
        zoo.load(str(tmp_path / "m.pt2"), **options)


@pytest.mark.parametrize("beside", ["another set", "an average of its own kind"])
def test_a_checkpoint_of_several_sets_of_weights_says_which_was_taken(spec, tmp_path, beside):
    state = small().state_dict()
    other = {k: v + 1 for k, v in state.items()}
    ema = {"ema_state_dict": other} if beside == "another set" else {"ema": {"decay": 0.9, "shadow": other}}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"model": state, "optimizer": optimizer, **ema}, tmp_path / "w.pth")
    network = load(spec, checkpoint=tmp_path / "w.pth")
    (said,) = network.warnings
    assert f"under 'model', which were taken, and under '{next(iter(ema))}'" in said
    assert torch.equal(network.module.state_dict()["1.weight"], state["1.weight"])
