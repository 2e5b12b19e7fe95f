"""torchvision's detectors as graphs can hold them: the heads of every anchor, or one image up to its boxes.

As they come they take a list of images and give a list of as many results, each of its own length: no graph
of a free batch can do that. Without NMS they are functions of a batch, which any compiler takes and INT8
quantizes; NMS then runs outside, where its thresholds can be changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from se_deploy.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

_ONE_STAGE = ("SSD", "RetinaNet", "FCOS")


def is_detector(module: nn.Module) -> bool:
    """Whether a module of torchvision takes lists of images and gives boxes."""
    return type(module).__name__ in {*_ONE_STAGE, "FasterRCNN", "MaskRCNN", "KeypointRCNN"}


def needs_nms(module: nn.Module) -> bool:
    """Whether a detector has two stages, of which the second works on the regions that NMS has left."""
    return type(module).__name__ not in _ONE_STAGE


def of_tensors(module: nn.Module, spec: str, size: tuple[int, int], *, nms: bool) -> nn.Module:
    """Return a detector as a module of a batch (N, 3, H, W) in [0, 1], `size` being (H, W).

    Without `nms`: boxes (N, A, 4) as x1 y1 x2 y2 in pixels and scores (N, A, classes) of every anchor. With
    it one image, and the boxes (K, 4), scores (K,) and labels (K,) that are left.
    Raises: BadInput where a detector cannot do without.
    """
    if nms:
        return OneImage(module)
    if needs_nms(module):
        raise BadInput(
            f"'{spec}' has two stages and chooses the regions of its second by NMS",
            hint="leave nms=False out, or take a detector of one stage such as ssdlite320_mobilenet_v3_large",
        )
    return Heads(module, size)


class OneImage(nn.Module):
    """A detector of one image, NMS included."""

    def __init__(self, detector: nn.Module) -> None:
        """`detector`: a network of torchvision."""
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return what the detector gives for `image` (1, 3, H, W): boxes (K, 4), scores, labels."""
        (found,) = self.detector([image[0]])
        return cast("dict[str, Tensor]", found)


class Heads(nn.Module):
    """A one-stage detector up to NMS, with the anchors of one size of image."""

    def __init__(self, detector: nn.Module, size: tuple[int, int]) -> None:
        """`size`: (H, W) of the images."""
        super().__init__()
        self.detector = detector.eval()
        self.kind = type(detector).__name__
        parts = cast("Any", detector)
        self.register_buffer("mean", torch.tensor(parts.transform.image_mean).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(parts.transform.image_std).reshape(3, 1, 1))
        from torchvision.models.detection.image_list import ImageList  # noqa: PLC0415 - an optional extra

        with torch.no_grad():
            blank = torch.zeros(1, 3, *size)
            (anchors,) = parts.anchor_generator(ImageList(blank, [size]), self._features(blank))
        self.register_buffer("anchors", anchors)
        self.register_buffer("limits", torch.tensor([size[1], size[0]] * 2, dtype=torch.float32))

    def _features(self, x: Tensor) -> list[Tensor]:
        found = cast("Any", self.detector).backbone(x)
        return [found] if isinstance(found, torch.Tensor) else list(found.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return boxes (N, A, 4) and scores (N, A, classes) of images (N, 3, H, W)."""
        parts = cast("Any", self.detector)
        mean, std = cast("Tensor", self.mean), cast("Tensor", self.std)
        made = parts.head(self._features((images - mean) / std))
        anchors, moved = cast("Tensor", self.anchors), made["bbox_regression"]
        if self.kind == "FCOS":
            boxes = parts.box_coder.decode(moved, anchors)
            scores = torch.sqrt(torch.sigmoid(made["cls_logits"]) * torch.sigmoid(made["bbox_ctrness"]))
        else:
            # Samples stand where torchvision's coder has classes, so that the batch may be any.
            columns = moved.permute(1, 0, 2).flatten(1)
            boxes = parts.box_coder.decode_single(columns, anchors).unflatten(1, (-1, 4)).permute(1, 0, 2)
            logits = made["cls_logits"]
            scores = torch.softmax(logits, -1) if self.kind == "SSD" else torch.sigmoid(logits)
        inside = torch.minimum(boxes.clamp(min=0), cast("Tensor", self.limits))
        return {"boxes": inside, "scores": scores}
