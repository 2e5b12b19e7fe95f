"""How many threads PyTorch takes for one operator.

Its threads wait by turning: a network whose operators are small pays for a second core more than that core
gives, twice over where the machine has other work.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

AS_BEFORE = 0


@contextlib.contextmanager
def limited(threads: int) -> Iterator[None]:
    """Let PyTorch use `threads` within one operator for as long as the block runs; AS_BEFORE: as it does."""
    before = torch.get_num_threads()
    if threads in (AS_BEFORE, before):
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
