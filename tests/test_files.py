from __future__ import annotations

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
