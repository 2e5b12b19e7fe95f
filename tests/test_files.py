from __future__ import annotations

import errno
import os
import signal

import pytest

from se_deploy import files
from se_deploy.errors import CannotWrite, OutputExists


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.bin"
    files.write_bytes(path, b"one")
    files.write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    files.write_bytes(path, b"one")

    def interrupted():
        with files.replacing(path) as part:
            part.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_claim_refuses_an_existing_file_without_overwrite(tmp_path):
    path = tmp_path / "a.bin"
    path.touch()
    with pytest.raises(OutputExists, match=r"a\.bin"):
        files.claim(path, overwrite=False)
    files.claim(path, overwrite=True)


def test_claim_makes_the_folder(tmp_path):
    files.claim(tmp_path / "deep" / "er" / "a.bin", overwrite=False)
    assert (tmp_path / "deep" / "er").is_dir()


@pytest.mark.parametrize("where", ["folder", "under-a-file"])
def test_claim_refuses_what_cannot_be_written(tmp_path, where):
    (tmp_path / "file").touch()
    path = tmp_path if where == "folder" else tmp_path / "file" / "a.bin"
    with pytest.raises(CannotWrite):
        files.claim(path, overwrite=True)


def test_sha256_is_the_standard_one(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert files.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/null"), lambda path: path.mkdir()]
)
def test_only_files_are_ever_replaced(tmp_path, make):
    make(tmp_path / "a")
    with pytest.raises(CannotWrite, match="a file is to be written there"):
        files.claim(tmp_path / "a", overwrite=True)


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "real", tmp_path / "link"
    real.write_bytes(b"one")
    link.symlink_to(real)
    with pytest.raises(OutputExists):
        files.claim(link, overwrite=False)
    files.claim(link, overwrite=True)
    files.write_bytes(link, b"two")
    assert link.is_symlink()
    assert real.read_bytes() == b"two"
    assert [p.name for p in real.parent.iterdir()] == ["real"]


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000 + "b"])
def test_a_name_that_is_too_long_is_refused_in_words(tmp_path, name):
    with pytest.raises(CannotWrite, match="File name too long"):
        files.claim(tmp_path / name, overwrite=False)


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / f"{'x' * 250}.onnx"
    files.write_bytes(path, b"whole")
    assert path.read_bytes() == b"whole"


def test_what_belongs_together_is_there_as_a_whole_or_not_at_all(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"one")

    def interrupted():
        with files.together() as publish:
            publish(old).write_bytes(b"two")
            publish(new).write_bytes(b"two")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"old": b"one"}
    with files.together() as publish:
        publish(old).write_bytes(b"two")
        publish(new).write_bytes(b"two")
        assert old.read_bytes() == b"one"
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"old": b"two", "new": b"two"}


def test_a_signal_waits_until_all_are_in_their_places(tmp_path, monkeypatch):
    real, replaced = files._replace, []

    def replace(path, part):
        if not replaced:
            signal.raise_signal(signal.SIGINT)
        real(path, part)
        replaced.append(path)

    monkeypatch.setattr(files, "_replace", replace)
    a, b = tmp_path / "a", tmp_path / "b"

    def publish_both():
        with files.together() as publish:
            publish(a).write_bytes(b"1")
            publish(b).write_bytes(b"1")

    with pytest.raises(KeyboardInterrupt):
        publish_both()
    assert replaced == [a, b]
    assert sorted(tmp_path.iterdir()) == [a, b]


def test_a_full_disk_is_said_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")

    def full():
        with files.replacing(path) as part:
            raise OSError(errno.ENOSPC, "No space left on device", str(part))

    with pytest.raises(CannotWrite, match=f"'{path}' cannot be written: No space left"):
        full()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"one"}


def test_odd_file_names_can_be_written_about(tmp_path):
    files.write_text(tmp_path / "a", "n\udcffme é")
    assert (tmp_path / "a").read_text("utf-8") == r"n\udcffme é"
