"""Video as folders of frames: every folder that holds images is one clip, (C, T, H, W)."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import files
from se_deploy.data import preprocessing
from se_deploy.data.images import UNREADABLE, decoder, unreadable
from se_deploy.data.samples import Hashes, hash_of
from se_deploy.errors import BadData, counted
from se_deploy.schema import input_spec

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from se_deploy.protocols import Array, TensorSpec
    from se_deploy.schema.input_spec import InputSpec

AXES = 5  # (N, C, T, H, W)
_HINT = "give one folder of frames for each clip, or the clips as .npy (N, C, T, H, W), prepared"


@dataclass(frozen=True, slots=True)
class Clip:
    """The frames of one clip, in order."""

    name: str
    frames: tuple[Path, ...]
    size: tuple[int, int]  # (H, W) of its first frame


@dataclass(frozen=True, slots=True)
class ClipSource:
    """Clips for one input (N, C, T, H, W)."""

    clips: tuple[Clip, ...]
    spec: TensorSpec

    def fetch(self, numbers: Sequence[int]) -> dict[str, Array]:
        """Return these clips, which are of one size, as one batch: pixels in [0, 1], or bytes as stored."""
        return {self.spec.name: np.stack([self._sample(self.clips[number]) for number in numbers])}

    def _sample(self, clip: Clip) -> Array:
        frame = _frame_spec(clip, self.spec)
        made = [_prepared(path, frame) for path in clip.frames]
        return np.stack(made, axis=1).astype(self.spec.dtype, copy=False)


def find(folder: Path, spec: TensorSpec, suffixes: Collection[str]) -> tuple[Clip, ...]:
    """Return the clips below `folder`, each cut down to as many frames as the input takes, evenly spaced.

    Raises: BadData where the axes are no clip's, a clip has too few frames, or its first is unreadable.
    """
    check_axes(spec)
    length = spec.dims[2]
    found = []
    places = sorted(p for p in (folder, *folder.rglob("*")) if p.is_dir() and not p.name.startswith("."))
    for place in places:
        name = place.relative_to(folder).as_posix()
        frames = sorted((p for p in place.iterdir() if p.suffix.lower() in suffixes), key=_in_order)
        if not frames:
            continue
        if length is not None and len(frames) < length:
            raise BadData(
                f"the clip '{name}' has {counted(len(frames), 'frame')}, "
                f"the input '{spec.name}' takes {length}",
                hint="remove it, or give longer clips",
            )
        count = len(frames) if length is None else length
        chosen = tuple(frames[(2 * i + 1) * len(frames) // (2 * count)] for i in range(count))
        found.append(Clip(name, chosen, _size(chosen[0])))
    return tuple(found)


def check_axes(spec: TensorSpec) -> None:
    """Raise BadData where the input is no clip (N, C, T, H, W) with the channels of an image."""
    if spec.dims[1] not in preprocessing.MODES:
        takes = ", ".join("?" if d is None else str(d) for d in ("N", *spec.dims[1:]))
        raise BadData(
            f"the input '{spec.name}' takes ({takes}); clips are fed as (N, C, T, H, W), C of 1, 3 or 4",
            hint="give the clips as .npy in the network's own order of axes",
        )


def shape_of(clip: Clip, spec: TensorSpec) -> tuple[int, ...]:
    """Return what a clip becomes: (C, T, H, W)."""
    frame = _frame_spec(clip, spec)
    return (frame.channels, len(clip.frames), frame.height, frame.width)


def warnings(spec: TensorSpec) -> tuple[str, ...]:
    """Return how frames are prepared where nobody said how; bytes are fed as they are."""
    if spec.dtype == np.uint8:
        return ()
    fed = f"the frames for '{spec.name}' are fed as pixels in [0, 1]"
    return (f"{fed}: give prepared .npy where the network was trained with another mean and std",)


def digest(clips: Sequence[Clip]) -> Hashes:
    """Hash the names and the bytes of every frame; a broken one is found here. Raises: BadData."""
    whole, each = hashlib.sha256(), []
    for clip in clips:
        own = b""
        for path in clip.frames:
            name = f"{clip.name}/{path.name}"
            data = files.read_bytes(path, error=BadData)
            try:
                with decoder(io.BytesIO(data)) as image:
                    image.load()
            except UNREADABLE as e:
                raise unreadable(name, e, _HINT) from e
            whole.update(f"{name}\0{len(data)}\0".encode())
            whole.update(data)
            own = hash_of(own, data)
        each.append(own)
    return Hashes(whole.hexdigest(), tuple(each))


def _prepared(path: Path, frame: InputSpec) -> Array:
    files.check_regular(path, error=BadData)
    try:
        with path.open("rb") as file, decoder(file) as image:
            return preprocessing.to_sample(image, frame)
    except UNREADABLE as e:
        raise unreadable(str(path), e, _HINT) from e


def _frame_spec(clip: Clip, spec: TensorSpec) -> InputSpec:
    """Return how one frame is prepared: to the input's height and width, its own where they are free."""
    channels, _, height, width = spec.dims[1:]
    size = (channels or 1, height or clip.size[0], width or clip.size[1])
    frame = input_spec.resized(None, size)
    return input_spec.frames(frame) if spec.dtype == np.uint8 else frame


def _size(path: Path) -> tuple[int, int]:
    files.check_regular(path, error=BadData)
    try:
        with path.open("rb") as file, decoder(file) as image:
            return image.height, image.width
    except UNREADABLE as e:
        raise unreadable(str(path), e, _HINT) from e


def _in_order(path: Path) -> tuple[tuple[int, str], ...]:
    """Sort frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts)
