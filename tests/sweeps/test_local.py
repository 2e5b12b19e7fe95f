"""Tasks in processes of this machine: order, failures, limits and lost processes."""

from __future__ import annotations

import io
import tarfile
import tempfile

import pytest
import stub_steps

from se_deploy.errors import BadInput
from se_deploy.sweeps import content
from se_deploy.sweeps.local import Local, jobs_that_fit
from se_deploy.sweeps.tasks import Task, inside


def task(key, function, arguments="", **rest):
    return Task(key, function, arguments, {}, **rest)


def work(folder, *tasks, jobs=2, retries=1):
    """Return each outcome by key, and what it wrote."""
    outcomes, texts = {}, {}

    def ended(outcome):
        outcomes[outcome.key] = outcome
        if outcome.output is not None and (outcome.output / "text").exists():
            texts[outcome.key] = (outcome.output / "text").read_text()

    counts = []
    Local(folder, jobs, retries).run(tasks, {}, ended=ended, count=counts.append)
    assert counts
    assert max(count.running for count in counts) <= jobs
    return outcomes, texts


def test_a_task_reads_what_the_one_before_it_made(tmp_path):
    tasks = (task("a", stub_steps.write, "one"), task("b", stub_steps.write, " two", after="a"))
    outcomes, texts = work(tmp_path, *tasks)
    assert list(outcomes) == ["a", "b"]
    assert texts == {"a": "one", "b": "one two"}
    assert not outcomes["b"].output.exists(), "what tasks made is gone"
    assert outcomes["b"].attempts == 1


def test_an_input_outside_of_the_folder_is_read_where_it_is(tmp_path):
    """A file that lies where it would have come to on another machine is another one."""
    base = tmp_path / "work"
    (base / "elsewhere" / "up").mkdir(parents=True)
    (base / inside("../input.txt")).write_text("another")
    (tmp_path / "input.txt").write_text("own")
    _, texts = work(base, task("a", stub_steps.copy_input, "../input.txt"))
    assert texts == {"a": "own"}


def test_one_job_works_in_the_order_written(tmp_path):
    tasks = [
        task("a", stub_steps.write), task("a2", stub_steps.write, after="a"),
        task("b", stub_steps.write), task("b2", stub_steps.write, after="b"),
    ]  # fmt: skip
    outcomes, _ = work(tmp_path, *tasks, jobs=1)
    assert list(outcomes) == ["a", "a2", "b", "b2"]


@pytest.mark.parametrize(
    ("function", "kind", "words"),
    [
        (stub_steps.refuse, "BadInput", "no thing"),
        (stub_steps.break_down, "ZeroDivisionError", "thing"),
        (stub_steps.die, "LostWorker", "SIGKILL"),
    ],
)
def test_a_failure_is_a_result_and_fails_only_what_needs_it(tmp_path, function, kind, words):
    outcomes, texts = work(
        tmp_path,
        task("bad", function, "thing"),
        task("needs it", stub_steps.write, after="bad"),
        task("good", stub_steps.write, "done"),
        retries=0,
    )
    assert outcomes["bad"].failure.kind == kind
    assert words in outcomes["bad"].failure.message
    assert outcomes["needs it"].failure == outcomes["bad"].failure
    assert outcomes["needs it"].attempts == 0
    assert texts == {"good": "done"}


def test_what_a_failed_task_left_is_gone_once_what_follows_it_has_failed(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    tasks = [
        task("bad", stub_steps.refuse, "thing"), task("needs it", stub_steps.write, after="bad"),
        task("good", stub_steps.write, "done"),
    ]  # fmt: skip
    left = {}

    def ended(outcome):
        left[outcome.key] = {path.name for path in scratch.glob("*/*")}

    Local(tmp_path, 1, 0).run(tasks, {}, ended=ended, count=lambda _: None)
    assert left["bad"] == {"bad"}
    assert left["good"] == {"good"}


def test_what_follows_has_the_time_that_is_left(tmp_path):
    outcomes, texts = work(
        tmp_path,
        task("first", stub_steps.sleep, 0.4),
        task("second", stub_steps.write, after="first", seconds=0.3),
    )
    assert outcomes["first"].failure is None
    assert outcomes["second"].failure.kind == "TimeLimit"
    assert "0.3 s" in outcomes["second"].failure.message
    assert "--cell-seconds" in outcomes["second"].failure.hint
    assert texts == {}


@pytest.mark.parametrize("retries", [0, 2])
def test_a_task_is_tried_again_so_often(tmp_path, retries):
    outcomes, _ = work(tmp_path, task("dies", stub_steps.die), retries=retries)
    assert outcomes["dies"].attempts == 1 + retries
    assert "--cpus 1" in outcomes["dies"].failure.hint, "--jobs says nothing to a cluster"


def test_a_task_ends_at_its_limit(tmp_path):
    outcomes, _ = work(tmp_path, task("long", stub_steps.sleep, 600, seconds=0.5))
    assert outcomes["long"].failure.kind == "TimeLimit"
    assert "0.5 s" in outcomes["long"].failure.message


def test_a_lost_process_is_replaced(tmp_path):
    outcomes, texts = work(tmp_path, task("killed", stub_steps.die_once, "marker"))
    assert outcomes["killed"].failure is None
    assert outcomes["killed"].attempts == 2
    assert texts == {"killed": "alive"}


def test_this_machine_works_on_one_at_least():
    assert jobs_that_fit() >= 1


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("nets/a.onnx", "nets/a.onnx"),
        ("/data/photos", "elsewhere/data/photos"),
        ("../a.onnx", "elsewhere/up/a.onnx"),
    ],
)
def test_every_input_has_a_name_below_the_working_directory(name, below):
    assert inside(name) == below


def test_content_travels_and_keeps_its_hash(tmp_path):
    folder = tmp_path / "photos" / "cat"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(b"one")
    (folder / "2.png").write_bytes(b"two")
    for path in (tmp_path / "photos", folder / "1.png"):
        content.unpack(content.packed(path), tmp_path / "there" / path.name)
        assert content.sha256(tmp_path / "there" / path.name) == content.sha256(path)
    before = content.sha256(tmp_path / "photos")
    (folder / "2.png").rename(folder / "3.png")
    assert content.sha256(tmp_path / "photos") != before, "a file's name says its class"


def test_an_archive_stays_in_its_folder(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("../a")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(BadInput, match="no file of it"):
        content.unpack(buffer.getvalue(), tmp_path / "there")
    assert not (tmp_path / "a").exists()
