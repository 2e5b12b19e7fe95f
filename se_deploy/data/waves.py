"""Recordings: WAV files as the waveform that a network of raw speech takes; features stay the user's.

How features are computed (window, hop, mel filters, normalization) differs from network to network and is
written nowhere in the file, so that a network of features gets none made up here.
"""

from __future__ import annotations

import hashlib
import wave
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import files
from se_deploy.data.samples import Hashes, hash_of
from se_deploy.errors import BadData, counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from se_deploy.protocols import Array, TensorSpec

SUFFIX = ".wav"
_MOST_CHANNELS = 8  # of sound: 7.1; what has more rows than that is features
_MOST_WIDTH = 4  # bytes of a PCM number
_DAMAGED: tuple[type[Exception], ...] = (wave.Error, *files.DAMAGED)
_HINT = "save it as PCM of 8, 16, 24 or 32 bits, or give the samples as .npy"


@dataclass(frozen=True, slots=True)
class Recording:
    """One WAV file's head."""

    path: Path
    name: str  # in messages
    channels: int
    frames: int
    width: int  # bytes of one number
    rate: int  # in Hz

    def samples(self) -> Array:
        """Return (channels, frames) as float32 in [-1, 1)."""
        with wave.open(str(self.path), "rb") as file:
            data = file.readframes(self.frames)
        numbers = _numbers(data, self.width)
        if len(numbers) != self.frames * self.channels:
            raise BadData(f"'{self.name}' ends before its {self.frames} frames", hint=_HINT)
        return np.ascontiguousarray(numbers.reshape(self.frames, self.channels).T)


@dataclass(frozen=True, slots=True)
class WaveSource:
    """Recordings for one input, (N, L) or (N, channels, L)."""

    recordings: tuple[Recording, ...]
    spec: TensorSpec

    def fetch(self, numbers: Sequence[int]) -> dict[str, Array]:
        """Return these recordings, which are equally long, as one batch."""
        waves = [self.recordings[number].samples() for number in numbers]
        flat = len(self.spec.dims) == 2  # noqa: PLR2004 - (N, L)
        batch = np.stack([one[0] if flat else one for one in waves])
        return {self.spec.name: batch.astype(self.spec.dtype, copy=False)}


def open_wave(path: Path, name: str) -> Recording:
    """Read the head of a WAV file. Raises: BadData."""
    size = files.check_regular(path, error=BadData)
    try:
        with wave.open(str(path), "rb") as file:
            found = Recording(
                path, name, file.getnchannels(), file.getnframes(), file.getsampwidth(), file.getframerate()
            )
    except _DAMAGED as e:
        why = "it is cut off" if isinstance(e, EOFError) else files.reason_of(e)
        raise BadData(f"'{name}' is no PCM WAV file: {why}", hint=_HINT) from e
    if not 1 <= found.width <= _MOST_WIDTH:
        raise BadData(f"'{name}' has numbers of {8 * found.width} bits", hint=_HINT)
    if found.frames * found.channels * found.width > size:
        raise BadData(f"'{name}' ends before its {found.frames} frames", hint=_HINT)
    if not found.frames:
        raise BadData(f"'{name}' holds no sound", hint="remove it, or record it again")
    return found


def check(recordings: Sequence[Recording], spec: TensorSpec) -> None:
    """Raise BadData where the input takes no waveforms, or others than these."""
    takes = ", ".join("?" if d is None else str(d) for d in ("N", *spec.dims[1:]))
    channels = 1 if len(spec.dims) == 2 else spec.dims[1] if len(spec.dims) == 3 else None  # noqa: PLR2004
    if channels is None or channels > _MOST_CHANNELS or spec.dtype.kind != "f":
        raise BadData(
            f"the input '{spec.name}' takes ({takes}) of {spec.dtype}, no waveform (N, L) or "
            "(N, channels, L): a WAV file cannot be fed",
            hint="compute the network's own features and give them as .npy, one sample per entry of the "
            "first axis, or as a folder with one .npy file a sample",
        )
    length = spec.dims[-1]
    for one in recordings:
        if one.channels != channels:
            raise BadData(
                f"'{one.name}' has {counted(one.channels, 'channel')}, the input '{spec.name}' takes "
                f"{channels}: ({takes})",
                hint="mix the recordings to that number of channels first",
            )
        if length not in {None, one.frames}:
            raise BadData(
                f"'{one.name}' has {one.frames} frames, the input '{spec.name}' takes {length}: ({takes})",
                hint="cut or pad the recordings to that length first",
            )
        if one.rate != recordings[0].rate:
            raise BadData(
                f"'{one.name}' has {one.rate} frames a second, '{recordings[0].name}' {recordings[0].rate}",
                hint="resample all recordings to the rate that the network was trained with",
            )


def digest(recordings: Sequence[Recording]) -> Hashes:
    """Hash the names and the bytes of the files, each of which is read to its end. Raises: BadData."""
    whole, each = hashlib.sha256(), []
    for one in recordings:
        one.samples()
        data = files.read_bytes(one.path, error=BadData)
        whole.update(f"{one.name}\0{len(data)}\0".encode())
        whole.update(data)
        each.append(hash_of(data))
    return Hashes(whole.hexdigest(), tuple(each))


def _numbers(data: bytes, width: int) -> Array:
    """Return PCM numbers as float32 in [-1, 1): bytes are unsigned, all wider ones signed, little-endian."""
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:  # noqa: PLR2004 - no such element type: the upper three bytes of four
        wide = np.zeros((len(data) // width, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data[: len(wide) * width], np.uint8).reshape(-1, width)
        return (wide.view("<i4")[:, 0] / 2**31).astype(np.float32)
    whole = data[: len(data) // width * width]
    return (np.frombuffer(whole, f"<i{width}") / 2.0 ** (8 * width - 1)).astype(np.float32)
