"""What is made once: kept whole, waited for by others that want it, made again where damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import se_deploy
from se_deploy import once
from se_deploy.errors import BuildFailed, CannotWrite

KEY = "ab" * 32
PROCESS = """
import os, sys, time
from pathlib import Path
from se_deploy import once

folder, begin, seconds = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])

def make():
    with (folder / "made").open("a") as log:
        log.write(f"{os.getpid()}\\n")
    time.sleep(seconds)
    return bytes(1_000_000)

time.sleep(max(0.0, begin - time.time()))
with once.kept_in(folder / "kept"):
    found = once.made("ab" * 32, make)
    assert found.data == bytes(1_000_000)
print(found.kept)
"""


def started(folder, seconds, begin=0.0):
    environment = os.environ | {"PYTHONPATH": str(Path(se_deploy.__file__).parents[1])}
    words = [sys.executable, "-c", PROCESS, str(folder), str(begin), str(seconds)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


def test_processes_that_want_the_same_at_once_make_it_once(tmp_path):
    begin = time.time() + 1.5
    processes = [started(tmp_path, 0.5, begin) for _ in range(3)]
    said = sorted(process.communicate()[0].strip() for process in processes)
    assert said == ["False", "True", "True"]
    assert len((tmp_path / "made").read_text().splitlines()) == 1
    assert [path.suffix for path in tmp_path.rglob("kept/*/*")] == [".kept"], "nothing else is left"


def test_what_a_killed_process_began_is_made_by_the_next_one(tmp_path):
    first = started(tmp_path, 600)
    while not (tmp_path / "made").exists():
        time.sleep(0.01)
    second = started(tmp_path, 0)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert second.communicate()[0].strip() == "False"


def counted(answers):
    """Return what gives one answer after the other, and how often it was asked."""
    asked = []

    def make():
        asked.append(1)
        return answers[len(asked) - 1]

    return make, asked


def test_what_is_kept_is_not_made_again(tmp_path):
    make, asked = counted([b"one", b"two"])
    with once.kept_in(tmp_path):
        assert once.known(KEY) is None
        assert once.made(KEY, make) == once.Made(b"one", kept=False)
        assert once.made(KEY, make) == once.Made(b"one", kept=True)
        assert once.known(KEY) == b"one"
        assert once.made("cd" * 32, make) == once.Made(b"two", kept=False)
    assert len(asked) == 2


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:0], lambda data: data[:-1] + b"!"]
)
def test_what_is_damaged_is_made_again(tmp_path, damage):
    make, asked = counted([b"whole"] * 2)
    with once.kept_in(tmp_path):
        once.made(KEY, make)
        (path,) = tmp_path.rglob("*.kept")
        path.write_bytes(damage(path.read_bytes()))
        assert once.known(KEY) is None
        assert once.made(KEY, make) == once.Made(b"whole", kept=False)
        assert once.made(KEY, make).kept, "and is whole again"
    assert len(asked) == 2


def test_a_failure_is_not_kept(tmp_path):
    def fail():
        raise BuildFailed("for want of memory", hint="-")

    with once.kept_in(tmp_path):
        with pytest.raises(BuildFailed):
            once.made(KEY, fail)
        assert once.made(KEY, lambda: b"now") == once.Made(b"now")


def test_outside_of_a_folder_nothing_is_kept(tmp_path):
    make, asked = counted([b"one", b"two"])
    with once.kept_in(tmp_path), once.kept_in(None):
        assert once.made(KEY, make).data == b"one"
    assert once.made(KEY, make) == once.Made(b"two")
    assert len(asked) == 2
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with once.kept_in(tmp_path / "file"), pytest.raises(CannotWrite, match="cannot be"):
        once.made(KEY, lambda: b"")
