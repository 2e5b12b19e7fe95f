"""torchvision's detectors as functions of tensors: heads of every anchor, or one image with NMS."""

from __future__ import annotations

import pytest

pytest.importorskip("torchvision")

import numpy as np
import torch
from se_graphs import run

from se_deploy import graph, se_blocks
from se_deploy.errors import BadInput
from se_deploy.frontend import torch_export, zoo

SSDLITE = "torchvision:ssdlite320_mobilenet_v3_large"
SAME = {"rtol": 1e-4, "atol": 1e-4}


def images(count, side=320):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def loaded(spec=SSDLITE, size=None, **args):
    return zoo.load(spec, model_args={"num_classes": 4, **args}, input_size=size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "first_class"),
    [
        ("ssdlite320_mobilenet_v3_large", None, 1),
        ("retinanet_resnet50_fpn", (3, 64, 96), 0),
        ("fcos_resnet50_fpn", (3, 64, 96), 0),
    ],
)
def test_every_box_of_the_detector_is_one_of_the_heads(name, size, first_class):
    module = loaded(f"torchvision:{name}", size).module
    height, width = size[1:] if size else (320, 320)
    batch = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    detector = module.detector
    if size:  # keep torchvision from resizing
        detector.transform.min_size, detector.transform.max_size = (min(size[1:]),), max(size[1:])
    detector.score_thresh = 0.0
    with torch.no_grad():
        heads, found = module(batch), detector(list(batch))
    assert heads["boxes"].shape[:2] == heads["scores"].shape[:2] == (2, len(module.anchors))
    for sample, one in enumerate(found):
        assert len(one["boxes"])
        for box, score, label in zip(one["boxes"][:20], one["scores"], one["labels"], strict=False):
            near = (heads["boxes"][sample] - box).abs().amax(1) < 1e-2
            assert label >= first_class
            assert (heads["scores"][sample][near][:, label] - score).abs().min() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["_dynamo", "_torchscript"])
def test_heads_are_exported_with_a_free_batch_and_blocks(exporter):
    network = loaded()
    with torch_export._silence():  # as `export` keeps what the exporters themselves warn of from its callers
        model = getattr(torch_export, exporter)(network, 20, None)
    assert [v.name for v in model.graph.outputs] == ["boxes", "scores"]
    assert len(se_blocks.detect(model).se) == 8
    assert (network.image.height, network.image.width) == (320, 320)
    batch = images(3)
    with torch.no_grad():
        boxes = network.module(batch)["boxes"]
    np.testing.assert_allclose(run(model, batch.numpy())[0], boxes, rtol=1e-3, atol=1e-2)


@pytest.mark.slow
def test_with_nms_one_image_is_taken_and_the_blocks_are_found():
    network = loaded(nms=True)
    exported = torch_export.export(network)
    assert exported.exporter == "torchscript", "NMS depends on data, which dynamo does not trace"
    assert [v.name for v in exported.model.graph.outputs] == ["boxes", "scores", "labels"]
    assert graph.dims(exported.model.graph.inputs[0]) == (1, 3, 320, 320)
    assert len(se_blocks.detect(exported.model).se) == 8


def test_a_detector_of_two_stages_cannot_do_without_nms():
    with pytest.raises(BadInput, match="two stages"):
        loaded("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", nms=False)
    with pytest.raises(BadInput, match="True or False"):
        loaded(nms="maybe")


@pytest.mark.slow
def test_a_checkpoint_is_the_librarys_own(tmp_path):
    module = loaded().module.detector
    torch.save(module.state_dict(), tmp_path / "own.pth")
    again = zoo.load(SSDLITE, model_args={"num_classes": 4}, checkpoint=tmp_path / "own.pth", seed=1)
    with torch.no_grad():
        np.testing.assert_allclose(
            again.module(images(1))["scores"], loaded().module(images(1))["scores"], **SAME
        )
