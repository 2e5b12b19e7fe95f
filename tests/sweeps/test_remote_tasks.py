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


@pytest.mark.parametrize(("field", "name"), [("python", "Python"), ("ray", "Ray"), ("tool", "se-deploy")])
def test_a_node_of_another_version_is_named_with_both(field, name):
    own = remote.Versions("3.11.7", "2.60.0", "1.2.0")
    remote.refuse_other("192.168.7.2", own, own)
    other = replace(own, **{field: "0.9"})
    with pytest.raises(BadInput, match=rf"192\.168\.7\.2 has {name} 0\.9, this machine \d") as refused:
        remote.refuse_other("192.168.7.2", other, own)
    assert f"install {name} {getattr(own, field)} there" in refused.value.hint
