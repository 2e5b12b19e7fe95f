import pytest

pytest.importorskip("torch")
timm = pytest.importorskip("timm")

import torch

from se_deploy.errors import BadModel
from se_deploy.frontend import zoo
from se_deploy.networks import NETWORKS, resnet

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
