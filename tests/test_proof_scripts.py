"""Short forms of the long proofs: kills at random moments, sizes that grow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import project_scripts
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.mark.slow
def test_kills_at_random_moments_and_places_that_cannot_be_written():
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "faults"), "--kills", "2", "--only", "export"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "size"), [("nodes", 200), ("megabytes", 8), ("images", 1000), ("gates", 2)]
)
def test_each_scale_is_measured(tmp_path, scale, size):
    with project_scripts.loaded("bench_scale") as script:
        seconds, peak = script.SCALES[scale](size, tmp_path)
    assert seconds > 0
    assert peak > 2**20
