"""A process that has read or written JSON ends with its own exit code."""

from __future__ import annotations

import subprocess
import sys

LAST = """
import atexit, gc
atexit.register(lambda: print(len(gc.get_objects()), gc.get_freeze_count()))  # first in, last to run
import se_deploy.schema
"""


def test_msgspecs_types_are_out_of_the_last_collections_reach():
    done = subprocess.run([sys.executable, "-c", LAST], check=True, capture_output=True, text=True)
    collected, frozen = map(int, done.stdout.split())
    assert frozen > collected
