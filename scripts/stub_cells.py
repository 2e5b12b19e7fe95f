"""Steps that do next to nothing, for `bench_sweep.py`: what is left is what a sweep itself takes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from se_deploy.sweeps.tasks import Places


def prepare(seconds: object, places: Places) -> None:
    """Wait, and leave a file."""
    time.sleep(float(str(seconds)))
    (places.output / "prepared").write_text("x")


def deploy(seconds: object, places: Places) -> None:
    """Wait, and leave a file behind the one that came before."""
    time.sleep(float(str(seconds)))
    before = places.before
    if before is None:
        raise ValueError("deploy follows prepare")
    (places.output / "deployed").write_text((before / "prepared").read_text())
