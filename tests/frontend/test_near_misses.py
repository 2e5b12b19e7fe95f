"""A name that is nearly right: the error says which was meant, before any network is made."""

import pytest

from se_deploy.errors import BadInput

torch = pytest.importorskip("torch")

from se_deploy.frontend import zoo


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ("timm:seresnet5O", "seresnet50"),
        ("timm:mobilnetv3_small_100", "mobilenetv3_small_100"),
        ("torchvision:mobilenetv3_small", "mobilenet_v3_small"),
        ("se_deploy:se_resnext50_32x4", "se_resnext50_32x4d"),
        ("tim:seresnet50", "timm:seresnet50"),
        ("se-deploy:se_resnet50", "se_deploy:se_resnet50"),
    ],
)
def test_the_name_that_was_meant_is_in_the_hint(spec, meant):
    if not spec.startswith("se"):
        pytest.importorskip("timm")
        pytest.importorskip("torchvision")
    with pytest.raises(BadInput) as refused:
        zoo.load(spec)
    assert meant in refused.value.hint
