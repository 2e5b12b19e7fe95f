"""What the zoos' own transforms make of a photograph is what ours makes of it."""

from __future__ import annotations

import project_scripts
import pytest

pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytest.importorskip("matplotlib")

import math

import numpy as np
import timm
import torch
from msgspec.structs import replace
from photographs import photographs
from timm.data import create_transform, resolve_data_config
from torchvision import models as torchvision_zoo
from torchvision.transforms import functional
from torchvision.transforms._presets import ImageClassification

from se_deploy import data
from se_deploy.data import preprocessing
from se_deploy.errors import BadInput
from se_deploy.frontend import public_zoos, zoo

ROUNDING = 1e-6  # float32, in the order of the zoos' own operations


def timm_config(name, **fields):
    config = resolve_data_config(
        pretrained_cfg=timm.models.get_pretrained_cfg(name, allow_unregistered=True).to_dict()
    )
    return {**config, **fields}


def torchvision_transform(name):
    return torchvision_zoo.get_model_weights(name).DEFAULT.transforms()


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",  # bilinear, 256 to 224
        "efficientnet_b0",  # bicubic
        "efficientnet_b1",  # 255 to 240: the fraction gives 254 back
        "efficientnet_b5",  # bicubic, 456 without a crop
        "efficientnet_v2_l",  # mean and deviation of 0.5
        "swin_v2_b",  # 272 to 256
    ],
)
def test_torchvision_classifiers(name):
    transform = torchvision_transform(name)
    spec = public_zoos.torchvision_spec(transform)
    for size, image in photographs().items():
        np.testing.assert_allclose(
            data.preprocess(image, spec), transform(image).numpy(), rtol=0, atol=ROUNDING, err_msg=size
        )


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet18", {}),  # bilinear, center
        ("seresnet50", {}),  # bicubic, 0.95
        ("tf_efficientnetv2_b3", {}),  # squash, then a crop
        ("vit_large_patch16_sapiens2", {}),  # squash to 1024x768
        ("volo_d5_448", {}),  # crop above 1: a black frame
        ("deepseek_vit_412m_enc", {}),  # border: the whole image, padded with the mean
        ("seresnet50", {"input_size": (3, 224, 161)}),  # no square: timm's own rounding
        ("seresnet50", {"input_size": (3, 160, 225), "crop_mode": "border", "crop_pct": 0.9}),
        ("seresnet50", {"interpolation": "lanczos"}),
    ],
)
def test_timm_networks(name, fields):
    config = timm_config(name, **fields)
    transform = create_transform(**config, is_training=False)
    spec = public_zoos.timm_spec(config)
    for size, image in photographs().items():
        np.testing.assert_allclose(
            data.preprocess(image, spec), transform(image).numpy(), rtol=0, atol=ROUNDING, err_msg=size
        )


def test_the_long_side_is_computed_in_integers():
    spec = public_zoos.torchvision_spec(torchvision_transform("efficientnet_b5"))
    assert preprocessing.resized_size(400, 600, spec) == (456, 684)
    assert preprocessing.resized_size(600, 400, spec) == (684, 456)
    assert preprocessing.resized_size(401, 600, spec) == (456, 682)


def test_a_size_that_no_fraction_gives_back_is_kept_in_integers():
    lost = [(s, r) for r in range(224, 400) for s in (224, 299) if s <= r != math.floor(s / (s / r))]
    assert lost
    for size, resized in lost:
        transform = ImageClassification(crop_size=size, resize_size=resized)
        spec = public_zoos.torchvision_spec(transform)
        assert preprocessing.resized_size(resized * 2, resized * 3, spec) == (resized, resized * 3 // 2)


def test_a_segmentation_network_takes_the_centre_of_what_torchvision_feeds_it():
    network = zoo.load("torchvision:lraspp_mobilenet_v3_large")
    spec = network.image
    assert (spec.shape, spec.resize_size or (spec.height, spec.width)) == ((3, 520, 520), (520, 520))
    assert "520x520" in network.warnings[0]
    for image in photographs().values():
        whole = torchvision_transform("lraspp_mobilenet_v3_large")(image).numpy()
        top, left = (round((side - 520) / 2) for side in whole.shape[1:])
        np.testing.assert_allclose(
            data.preprocess(image, spec), whole[:, top : top + 520, left : left + 520], rtol=0, atol=ROUNDING
        )


def test_a_detection_network_finds_its_images_resized_and_not_normalized():
    network = zoo.load("torchvision:ssdlite320_mobilenet_v3_large")
    spec = network.image
    assert (spec.shape, spec.mean, spec.std) == ((3, 320, 320), (0.0,) * 3, (1.0,) * 3)
    inside = network.module.detector.transform
    for image in photographs().values():
        ours, _ = inside([torch.from_numpy(data.preprocess(image, spec))])
        theirs, _ = inside([functional.to_tensor(image)])
        assert ours.tensors.shape == theirs.tensors.shape
        # In [-1, 1] there; what is left are the last bits of the two orders of interpolation.
        torch.testing.assert_close(ours.tensors, theirs.tensors, rtol=0, atol=1e-4)


def test_a_video_network_says_that_no_image_transform_is_known():
    with pytest.raises(BadInput, match="does not say what it is fed"):
        zoo.load("torchvision:mc3_18")
    network = zoo.load("torchvision:mc3_18", input_size=(3, 4, 16, 16))
    assert network.image is None
    assert "VideoClassification" in network.warnings[0]


@pytest.mark.parametrize("spec", ["torchvision:mobilenet_v3_small", "torchvision:efficientnet_b0"])
def test_random_weights_still_mean_the_transform_of_the_default_weights(spec):
    transform = torchvision_transform(spec.partition(":")[2])
    assert zoo.load(spec).image == public_zoos.torchvision_spec(transform)


def test_a_timm_network_keeps_its_transform_at_another_size():
    network = zoo.load("timm:test_efficientnet", input_size=(1, 96, 64))
    own = public_zoos.timm_spec(timm_config("test_efficientnet"))
    assert network.image.shape == (1, 96, 64)
    assert network.image.mean == (pytest.approx(sum(own.mean) / 3),)
    assert (network.image.crop, network.image.interpolation) == (own.crop, own.interpolation)
    assert network.image.rounding == "nearest"
    assert zoo.load("timm:test_efficientnet").image == own


def test_a_torchvision_network_at_another_size_keeps_the_share_that_is_cropped():
    spec = zoo.load("torchvision:mobilenet_v3_small", input_size=(3, 112, 112)).image
    assert preprocessing.resized_size(500, 500, spec) == (128, 128)
    wanted = replace(spec, height=224, width=224)
    assert wanted == public_zoos.torchvision_spec(torchvision_transform("mobilenet_v3_small"))


@pytest.fixture(scope="module")
def preprocessing_table():
    """The script whose table is in docs/preprocessing.md."""
    with project_scripts.loaded("preprocessing_table") as module:
        yield module


def test_the_table_counts_grey_levels(preprocessing_table):
    transform = torchvision_transform("efficientnet_b0")
    right = public_zoos.torchvision_spec(transform)
    for spec, low, high in (
        (right, 0, 1e-3),
        (replace(right, interpolation="bilinear"), 2, 100),  # what this network was fed before
        (replace(right, mean=(0.485, 0.456, 0.410)), 1, 1.1),
    ):
        weights = preprocessing_table.Weights("efficientnet_b0", spec, transform, default=True)
        assert low <= preprocessing_table.difference(weights, photographs().values()) <= high


@pytest.mark.long
def test_every_network_of_both_zoos_is_fed_as_its_zoo_feeds_it(preprocessing_table):
    rows = preprocessing_table.table()
    assert [(row.zoo, row.rule, row.worst) for row in rows if row.worst > preprocessing_table.LIMIT] == []
    networks = {zoo: sum(row.networks for row in rows if row.zoo == zoo) for zoo in ("torchvision", "timm")}
    assert networks == {"torchvision": len(torchvision_zoo.list_models()), "timm": len(timm.list_models())}
    unknown = {name for row in rows if not row.configurations for name in row.names}
    classifiers = set(torchvision_zoo.list_models(module=torchvision_zoo)) | set(timm.list_models())
    assert not unknown & classifiers
