"""Tasks that do next to nothing, for tests and measurements of what works on them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy.errors import BadInput

if TYPE_CHECKING:
    from se_deploy.sweeps.tasks import Places


def write(text: object, places: Places) -> None:
    """Write what it is given, behind what came before."""
    before = "" if places.before is None else (places.before / "text").read_text()
    (places.output / "text").write_text(f"{before}{text}")


def copy_input(name: object, places: Places) -> None:
    """Write what an input file holds."""
    (places.output / "text").write_text((places.inputs / places.at(str(name))).read_text())


def refuse(text: object, _places: Places) -> None:
    """Fail as a step does."""
    raise BadInput(f"no {text}", hint="give one")


def break_down(text: object, _places: Places) -> None:
    """Fail as a defect does."""
    raise ZeroDivisionError(str(text))


def sleep(seconds: object, _places: Places) -> None:
    """Take long."""
    time.sleep(float(str(seconds)))


def die_once(marker: object, places: Places) -> None:
    """Be killed the first time."""
    path = places.inputs / str(marker)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (places.output / "text").write_text("alive")


def die(_nothing: object, _places: Places) -> None:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def slower_first(seconds, job):
    """Be the later, the earlier one was asked."""
    time.sleep(seconds / (1 + job))
    return job


def dies_once(marker, job):
    """Take its process with it the first time."""
    path = Path(f"{marker}{job}")
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def dies(_shared, _job):
    """Take its process with it."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuses(_shared, job):
    """Fail as a step does."""
    raise BadInput(f"no {job}", hint="give one")
