"""A folder that several machines share: whoever writes the same at once leaves one whole file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import se_deploy
from se_deploy import once
from se_deploy.errors import CannotWrite

HOST = """
import sys, time
from pathlib import Path
from se_deploy import locks, once
from se_deploy.sweeps import remote

locks.hold = lambda descriptor: True  # a file system whose locks hold on one machine only
store, begin = Path(sys.argv[1]), float(sys.argv[2])
data = bytes(range(256)) * 40_000
while time.time() < begin:
    pass
for n in range(10):
    once.publish(data, remote.stored(store, f"{n:064}"))
"""
SIZE = 256 * 40_000


def test_hosts_that_write_the_same_at_once_leave_one_whole_file(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(se_deploy.__file__).parents[1])}
    words = [sys.executable, "-c", HOST, str(tmp_path), str(time.time() + 2.0)]
    hosts = [subprocess.Popen(words, env=environment, stderr=subprocess.PIPE) for _ in range(3)]
    seen = set()
    while any(host.poll() is None for host in hosts):
        for path in tmp_path.glob("*/*.tar"):
            seen.add(path.stat().st_size)
    assert [(host.returncode, host.stderr.read()) for host in hosts] == [(0, b"")] * 3
    for host in hosts:
        host.stderr.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 10, "nothing else is left"
    assert seen | {path.stat().st_size for path in files} == {SIZE}, "no reader sees half a file"
    assert files[0].read_bytes() == bytes(range(256)) * 40_000


def test_what_a_killed_writer_left_goes_after_a_day(tmp_path):
    old, new = tmp_path / "k.tar.1.part", tmp_path / "k.tar.2.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 100_000,) * 2)
    once.publish(b"whole", tmp_path / "k.tar")
    assert {path.name for path in tmp_path.iterdir()} == {"k.tar", "k.tar.2.part"}


def test_what_cannot_be_removed_does_not_undo_what_was_written(tmp_path):
    left = tmp_path / "k.tar.1.part"
    left.mkdir()  # as another user's file in a folder that all may write
    os.utime(left, (time.time() - 100_000,) * 2)
    once.publish(b"whole", tmp_path / "k.tar")
    assert (tmp_path / "k.tar").read_bytes() == b"whole"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CannotWrite, match="cannot be written"):
        once.publish(b"x", tmp_path / "file" / "k.tar")
