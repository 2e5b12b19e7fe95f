"""What a node does with a task, and what is held against it, without a cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest
import stub_steps

from se_deploy.errors import BadInput
from se_deploy.sweeps import content, remote
from se_deploy.sweeps.tasks import Task


@pytest.fixture
def on_node(monkeypatch):
    """Do a task as a node does it whose folder of all nodes is the one named."""
    monkeypatch.setattr(remote, "here", lambda: "node")

    def do(task, store):
        given = remote.Given(dict.fromkeys(task.files.values()))
        return remote.on_node(task, given, remote.Way(None, 0, store))

    return do


def test_in_a_shared_folder_a_step_is_done_once(on_node, tmp_path):
    task = Task("a" * 64, stub_steps.write, "text", {})
    for attempts in (1, 0):
        made, data, kept = on_node(task, tmp_path)
        assert (made.failure, made.attempts, data, kept) == (None, attempts, None, None)
    assert b"text" in remote.read(tmp_path, task.key)


def test_an_input_from_outside_of_the_folder_has_a_place_on_a_node(on_node, tmp_path):
    (tmp_path / "input.txt").write_text("own")
    place = remote.stored(tmp_path, "sha")
    place.parent.mkdir()
    place.write_bytes(content.packed(tmp_path / "input.txt"))
    task = Task("k", stub_steps.copy_input, "../input.txt", {"../input.txt": "sha"})
    assert on_node(task, tmp_path)[0].failure is None
    assert b"own" in remote.read(tmp_path, task.key)


def test_a_node_that_does_not_see_the_shared_folder_says_so(on_node, tmp_path):
    made, _, _ = on_node(Task("k", stub_steps.write, "text", {"x.npy": "sha"}), tmp_path / "elsewhere")
    assert made.failure.kind == "NotShared"
    assert "elsewhere" in made.failure.message
    assert "--store" in made.failure.hint


def count_alike(word, places):
    """Make what tasks of a kind make alike, unless it was kept; write whether it was."""
    kept = places.kept / "alike"
    (places.output / "text").write_text("found" if kept.exists() else "made")
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(word)


def packed(folder, *, alike):
    folder.mkdir()
    (folder / "alike").write_text(alike)
    return content.packed(folder)


@pytest.mark.parametrize("way", ["kept", "nothing kept", "lost", "unreadable"])
def test_what_was_kept_and_is_lost_costs_time_and_not_the_task(way, monkeypatch, tmp_path):
    ray = pytest.importorskip("ray")
    data = packed(tmp_path / "kept", alike="earlier")
    held = {"kept": data, "nothing kept": None, "unreadable": data[:700]}
    monkeypatch.setattr(remote, "here", lambda: "node")

    def get(_references):
        if way == "lost":
            raise ray.exceptions.ObjectLostError("0" * 56, None, "")
        return [held[way]]

    monkeypatch.setattr(ray, "get", get)
    given = remote.Given({}, kept=["reference"])
    task = Task("k", count_alike, "own", {})
    made, files, on = remote.on_node(task, given, remote.Way(None, 0, None, hands_on=True))
    assert (made.failure, made.attempts) == (None, 1)
    content.unpack(files, tmp_path / "made")
    assert (tmp_path / "made" / "text").read_text() == ("found" if way == "kept" else "made")
    content.unpack(on, tmp_path / "on")
    assert (tmp_path / "on" / "alike").read_text() == "own", "the next one gets what this one kept"
    if way in held.keys() - {"unreadable"}:
        assert made.note is None
    else:
        assert "what was kept for it is lost, it did all by itself: " in made.note


def test_what_a_task_made_and_cannot_be_unpacked_is_its_failure(tmp_path):
    for data in (b"", b"no archive", packed(tmp_path / "whole", alike="x")[:700]):
        with pytest.raises(BadInput, match="cannot be unpacked"):
            content.unpack(data, tmp_path / "there")


@pytest.mark.parametrize(("field", "name"), [("python", "Python"), ("ray", "Ray"), ("tool", "se-deploy")])
def test_a_node_of_another_version_is_named_with_both(field, name):
    own = remote.Versions("3.11.7", "2.60.0", "1.2.0")
    remote.refuse_other("192.168.7.2", own, own)
    other = replace(own, **{field: "0.9"})
    with pytest.raises(BadInput, match=rf"192\.168\.7\.2 has {name} 0\.9, this machine \d") as refused:
        remote.refuse_other("192.168.7.2", other, own)
    assert f"install {name} {getattr(own, field)} there" in refused.value.hint
