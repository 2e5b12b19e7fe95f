"""What a node does with a task, and what is held against it, without a cluster."""

from __future__ import annotations

import pytest
import stub_steps

from se_deploy.sweeps import remote
from se_deploy.sweeps.tasks import Task


@pytest.fixture
def on_node(monkeypatch):
    """Do a task as a node does it whose folder of all nodes is the one named."""
    monkeypatch.setattr(remote, "here", lambda: "node")

    def do(task, store):
        return remote.on_node(task, dict.fromkeys(task.files.values()), None, remote.Way(None, 0, store))

    return do


def test_in_a_shared_folder_a_step_is_done_once(on_node, tmp_path):
    task = Task("a" * 64, stub_steps.write, "text", {})
    for attempts in (1, 0):
        made, data = on_node(task, tmp_path)
        assert (made.failure, made.attempts, data) == (None, attempts, None)
    assert b"text" in remote.read(tmp_path, task.key)


def test_a_node_that_does_not_see_the_shared_folder_says_so(on_node, tmp_path):
    made, _ = on_node(Task("k", stub_steps.write, "text", {"x.npy": "sha"}), tmp_path / "elsewhere")
    assert made.failure.kind == "NotShared"
    assert "elsewhere" in made.failure.message
    assert "--store" in made.failure.hint
