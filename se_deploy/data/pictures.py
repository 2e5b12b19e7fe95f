"""A network's image input as a small picture again, for pages."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from se_deploy.data.preprocessing import MODES

if TYPE_CHECKING:
    from se_deploy.protocols import Array
    from se_deploy.schema.input_spec import InputSpec

THUMBNAIL_PX = 96
"""The longer side at most: 12 of them are some 100 kB in a page."""

_WHITE = 255


def thumbnail(sample: Array, spec: InputSpec) -> bytes | None:
    """Return one sample, (C, H, W) or (H, W, C) as `spec` says, as a PNG of at most 96 pixels a side.

    None where the sample is no picture of `spec.channels` channels.
    """
    if sample.shape != spec.dims or spec.channels not in MODES:
        return None
    pixels = (sample if spec.layout == "NHWC" else sample.transpose(1, 2, 0)).astype(np.float32)
    if not spec.is_frames:
        pixels = (pixels * np.asarray(spec.std, np.float32) + np.asarray(spec.mean, np.float32)) * _WHITE
    stored = np.clip(np.round(np.nan_to_num(pixels)), 0, _WHITE).astype(np.uint8)
    image = Image.fromarray(stored[:, :, 0] if spec.channels == 1 else stored)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    written = io.BytesIO()
    image.save(written, "PNG", optimize=True)
    return written.getvalue()
