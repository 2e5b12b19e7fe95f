"""WAV files that several tests write."""

from __future__ import annotations

import wave

import numpy as np


def record(path, numbers, *, width=2, rate=16_000):
    """Write integers (frames, channels) as PCM."""
    numbers = np.asarray(numbers)
    numbers = numbers if numbers.ndim > 1 else numbers[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(numbers.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        low = numbers.astype("<i8").reshape(-1, 1).view(np.uint8)[:, :width]
        file.writeframes(low.tobytes())
    return path
