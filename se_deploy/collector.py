"""How much the collector of cycles has to walk: all of PyTorch is some 800,000 objects, most of a second."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def only_new(*, drop_old: bool = False) -> Iterator[None]:
    """Let the collector walk only what is made from here on, until the outermost such block is left.

    `drop_old`: collect once before, for what is garbage by then stays until the end.
    """
    if gc.get_freeze_count():  # by the caller, who also decides when it ends
        yield
        return
    if drop_old:
        gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
