"""A short form of scripts/fuzz, and every input that it ever found."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import hypothesis
import needs
import pytest
from hypothesis import strategies as st

from fuzz import cases, mutations
from fuzz.readers import READERS

HERE = Path(__file__).parent
FOUND = sorted(path for path in (HERE / "found").rglob("*") if path.is_file())
LIGHT = [reader for reader in READERS if not reader.needs_torch]


@pytest.mark.parametrize("reader", LIGHT, ids=lambda reader: reader.name)
def test_good_files_are_read(reader, tmp_path):
    for n, seed in enumerate(reader.seeds()):
        folder = tmp_path / str(n)
        folder.mkdir()
        path = folder / reader.file
        path.write_bytes(seed)
        if reader.name not in {"other-picture", "configuration"}:  # formats that are refused; paths not there
            reader.read(path)


@hypothesis.given(seed=st.integers(0, 2**32), reader=st.sampled_from(LIGHT))
@hypothesis.settings(deadline=None, max_examples=60)
def test_a_damaged_file_is_read_or_refused_in_words(seed, reader, tmp_path_factory):
    chance = random.Random(seed)  # noqa: S311 - no secret
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = mutations.mutated(chance, reader.form, tuple(reader.seeds()))
        assert cases.run(reader, content, tmp_path_factory.mktemp("fuzz") / "case") is None


def limited(*args):
    """What a child under limits of memory and time says, line by line."""
    paths = os.pathsep.join((str(HERE.parent), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.cases", *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@needs.TORCH
@pytest.mark.slow
def test_what_was_found_once_is_read_or_refused_within_a_gigabyte_and_five_seconds(tmp_path):
    said = limited("--folder", tmp_path / "case", "--files", *FOUND)
    judged = {line["file"]: line["finding"] for line in said if "finding" in line}
    assert len(judged) == len(FOUND)
    assert [item for item in judged.items() if item[1] is not None] == []


@needs.TORCH
@pytest.mark.slow
def test_thirty_damaged_files_for_every_reader_within_limits(tmp_path):
    names = [reader.name for reader in READERS]
    said = limited(*names, "--cases", 30, "--seconds", 60, "--seed", 2026, "--folder", tmp_path / "case")
    assert [line for line in said if "finding" in line] == []
    assert {line["reader"]: line["cases"] for line in said} == dict.fromkeys(names, 30)
