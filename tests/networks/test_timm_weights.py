import pytest

pytest.importorskip("torch")
timm = pytest.importorskip("timm")

import re

import torch

from se_deploy.errors import BadModel
from se_deploy.frontend import zoo
from se_deploy.networks import NETWORKS, res2net, resnet

PAIRS = {
    "se_resnet18": "legacy_seresnet18",
    "se_resnet34": "legacy_seresnet34",
    "se_resnet50": "legacy_seresnet50",
    "se_resnet101": "legacy_seresnet101",
    "se_resnet152": "legacy_seresnet152",
    "se_resnext50_32x4d": "legacy_seresnext50_32x4d",
    "se_resnext101_32x4d": "legacy_seresnext101_32x4d",
    "senet154": "legacy_senet154",
}
QUICK = ("se_resnet18", "se_resnext50_32x4d")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PAIRS]
)
def test_timms_weights_give_timms_outputs(name):
    torch.manual_seed(0)
    theirs = timm.create_model(PAIRS[name]).eval()
    ours = NETWORKS[name].build().eval()
    ours.load_state_dict(resnet.from_timm(theirs.state_dict()))
    x = torch.randn(1, 3, 71, 65)  # odd sides: the pool that rounds up matters
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_a_foreign_key_is_named():
    with pytest.raises(ValueError, match=r"blocks\.0\.conv_pw\.weight"):
        resnet.from_timm({"blocks.0.conv_pw.weight": torch.zeros(1)})


def test_a_checkpoint_of_timms_or_of_the_other_form_loads_as_it_is(tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model("legacy_seresnet18", num_classes=10).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    x = torch.randn(1, 3, 64, 64)
    for form in ("conv", "linear"):
        arguments = {"num_classes": 10, "form": form}
        ours = zoo.load("se_deploy:se_resnet18", checkpoint=tmp_path / "timm.pth", model_args=arguments)
        with torch.inference_mode():
            torch.testing.assert_close(ours.module(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_timms_weights_of_another_depth_are_refused(tmp_path):
    theirs = timm.create_model("legacy_seresnet34", num_classes=10)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    with pytest.raises(BadModel, match="unexpected"):
        zoo.load("se_deploy:se_resnet18", checkpoint=tmp_path / "timm.pth", model_args={"num_classes": 10})


@pytest.mark.slow
def test_timms_res2net_computes_what_ours_does():
    """timm leaves the last group of channels as it is, ours the first, as the paper writes it."""
    torch.manual_seed(0)
    theirs = timm.create_model("res2net50_26w_4s").eval()
    state = {}
    for key, value in theirs.state_dict().items():
        group = value.shape[0] // 4 if value.dim() else 0
        if re.search(r"layer\d\.\d+\.(conv1|bn1)\.", key) and value.dim():
            value = value.roll(group, 0)  # noqa: PLW2901 - what the scales take
        elif re.search(r"layer\d\.\d+\.conv3\.", key):
            value = value.roll(value.shape[1] // 4, 1)  # noqa: PLW2901 - what the scales give
        for pattern, name in RES2NET_KEYS:
            key = re.sub(pattern, name, key)  # noqa: PLW2901 - renamed step by step
        state[re.sub(r"stages\.(\d)", lambda found: f"stages.{int(found[1]) - 1}", key)] = value
    ours = res2net.se_res2net50(placement="none").eval()
    ours.load_state_dict(state)
    x = torch.randn(1, 3, 71, 65)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


RES2NET_KEYS = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.norm1."),
    (r"^fc\.", "head."),
    (r"^layer(\d)\.(\d+)\.convs\.(\d)\.", r"stages.\1.\2.branch.scales.convs.\3.conv."),
    (r"^layer(\d)\.(\d+)\.bns\.(\d)\.", r"stages.\1.\2.branch.scales.convs.\3.norm."),
    (r"^layer(\d)\.(\d+)\.conv(\d)\.", r"stages.\1.\2.branch.conv\3."),
    (r"^layer(\d)\.(\d+)\.bn(\d)\.", r"stages.\1.\2.branch.norm\3."),
    (r"^layer(\d)\.(\d+)\.downsample\.0\.", r"stages.\1.\2.shortcut.conv."),
    (r"^layer(\d)\.(\d+)\.downsample\.1\.", r"stages.\1.\2.shortcut.norm."),
)
