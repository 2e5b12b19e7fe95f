from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from se_deploy import files, locks
from se_deploy.errors import CannotWrite


def holding(code, *args):
    """Start a process that runs `code`, says "there" and waits to be killed."""
    text = f"import sys, time\nfrom pathlib import Path\nfrom se_deploy import files, locks\n{code}"
    process = subprocess.Popen(
        [sys.executable, "-c", text, *map(str, args)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "there\n"
    return process


def killed(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


FOLDER = """
with locks.folder(Path(sys.argv[1])):
    print("there", flush=True)
    time.sleep(600)
"""
PART = """
with files.replacing(Path(sys.argv[1]) / "a.onnx") as part:
    part.write_bytes(b"half")
    print("there", flush=True)
    time.sleep(600)
"""
SCRATCH = """
with locks.scratch() as folder:
    (folder / "x").mkdir()
    print("there", flush=True)
    time.sleep(600)
"""


def test_who_takes_a_folder_removes_what_a_killed_run_left_half_written_in_it(tmp_path):
    killed(holding(PART, tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    with locks.folder(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".se-deploy-lock"]


def test_a_folder_is_one_processs_as_long_as_it_lives(tmp_path):
    other = holding(FOLDER, tmp_path)
    try:
        with pytest.raises(CannotWrite, match="another run is writing into"), locks.folder(tmp_path):
            pass
    finally:
        killed(other)
    with locks.folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_lock_is_made_and_a_file_is_none(tmp_path):
    with locks.folder(tmp_path / "new" / "er"):
        assert (tmp_path / "new" / "er").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite, match="is a file"), locks.folder(tmp_path / "file"):
        pass


def test_what_a_killed_process_left_half_written_goes_and_a_living_ones_stays(tmp_path):
    other = holding(PART, tmp_path)
    try:
        (part,) = tmp_path.iterdir()
        files.claim(tmp_path / "b.onnx", overwrite=False)
        assert part.exists()
    finally:
        killed(other)
    assert part.exists()
    (tmp_path / "mine.part").touch()
    files.claim(tmp_path / "b.onnx", overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.part"]


def test_the_scratch_folder_of_a_killed_process_goes_and_a_living_ones_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    other = holding(SCRATCH)
    try:
        (left,) = tmp_path.iterdir()
        with locks.scratch() as own:
            assert list(own.iterdir()) == []
            assert sorted(tmp_path.iterdir()) == sorted([left, own])
        assert list(tmp_path.iterdir()) == [left]
    finally:
        killed(other)
    with locks.scratch():
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_where_a_file_system_has_no_locks_nobody_is_taken_for_dead(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def none(_descriptor, _how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with locks.scratch() as folder, files.replacing(folder / "a.onnx") as part:
        part.write_bytes(b"half")
        with locks.scratch(), locks.folder(folder):
            files.claim(folder / "b.onnx", overwrite=False)
        assert part.read_bytes() == b"half"
    assert list(tmp_path.iterdir()) == []


def test_a_lock_ends_with_its_file(tmp_path):
    (tmp_path / "a").touch()
    one, two = (os.open(tmp_path / "a", os.O_RDWR) for _ in range(2))
    assert locks.hold(one)
    assert not locks.hold(two)
    os.close(one)
    assert locks.hold(two)
    os.close(two)
