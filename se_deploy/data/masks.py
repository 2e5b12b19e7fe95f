"""A mask of classes as a picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from se_deploy.protocols import Array

COLOURS = 256
_BITS = 8


def png(classes: Array) -> bytes:
    """Return class indices (H, W) as a PNG whose pixels are those indices, shown in PASCAL VOC's colours.

    Raises: ValueError for an index that a palette of 256 colours does not have.
    """
    if classes.size and not 0 <= classes.min() <= classes.max() < COLOURS:
        raise ValueError(f"classes {classes.min()} to {classes.max()}: a palette has {COLOURS}")
    image = Image.fromarray(classes.astype(np.uint8), "L")
    image.putpalette(palette())
    written = io.BytesIO()
    image.save(written, "PNG", optimize=True)
    return written.getvalue()


def palette() -> list[int]:
    """Return red, green and blue of each index, the colour map of PASCAL VOC's masks.

    An index gives its lowest three bits to the highest of red, green and blue, the next three to the next.
    """
    colours = []
    for index in range(COLOURS):
        for channel in range(3):
            bits = [(index >> (3 * place + channel)) & 1 for place in range(_BITS)]
            colours.append(sum(bit << (_BITS - 1 - place) for place, bit in enumerate(bits)))
    return colours
