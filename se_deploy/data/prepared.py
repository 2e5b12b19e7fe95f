"""Prepared images that are kept while a command runs: its steps read the same samples again and again.

Outside of a scope nothing is kept: a library's user who reads one data set pays no memory for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from se_deploy.protocols import Array

MOST_BYTES = 1 << 28
"""Of all that is kept, 256 MiB: some 450 images of 3 x 224 x 224. What comes first stays: samples are read in
one order each time, so that the one used last would always be gone when it is asked for again."""

_kept: dict[bytes, Array] = {}
_lock = threading.Lock()
_scopes = 0
_bytes = 0


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep prepared images until the outermost such scope is left."""
    global _scopes, _bytes  # noqa: PLW0603 - one store for all of this process
    with _lock:
        _scopes += 1
    try:
        yield
    finally:
        with _lock:
            _scopes -= 1
            if not _scopes:
                _kept.clear()
                _bytes = 0


def has_room(size: int) -> bool:
    """Whether a sample of so many bytes would be kept now."""
    return bool(_scopes) and _bytes + size <= MOST_BYTES


def of(content: bytes, how: str, prepare: Callable[[], Array]) -> Array:
    """Return what `prepare` makes of a file's bytes; `how` says everything else that it depends on.

    What is kept is shared, and so it cannot be written into.
    """
    global _bytes  # noqa: PLW0603 - as above
    if not _scopes:
        return prepare()
    key = hashlib.sha256(content).digest() + how.encode()
    found = _kept.get(key)
    if found is None:
        found = prepare()
        with _lock:
            if _scopes and key not in _kept and _bytes + found.nbytes <= MOST_BYTES:
                found.setflags(write=False)
                _kept[key] = found
                _bytes += found.nbytes
    return found
