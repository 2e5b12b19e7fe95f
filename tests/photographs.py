"""A photograph in the sizes that separate one resizing rule from another."""

from __future__ import annotations

from matplotlib import cbook
from PIL import Image


def photographs():
    """Return RGB images by name: landscape and portrait, odd sides, scaled up and down."""
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        portrait = image.convert("RGB")  # 512x600, ships with matplotlib
    lying = portrait.transpose(Image.Transpose.ROTATE_90)
    return {
        "600x400": lying.crop((0, 60, 600, 460)),  # to 456: 684 in integers, 683.99 in floats
        "97x141": portrait.crop((130, 60, 227, 201)),
        "1203x801": lying.resize((1203, 801), Image.Resampling.LANCZOS),
    }
