"""Which cluster --on means, before anything is joined."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
import ray_cluster

from se_deploy.commands.export import export
from se_deploy.errors import BadInput, RemoteFailed
from se_deploy.sweeps import cluster

pytestmark = ray_cluster.NEEDED


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """Where Ray notes the cluster that this machine is a node of."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


@pytest.mark.parametrize("named", [None, "auto"])
def test_ray_is_the_cluster_that_this_machine_is_a_node_of(named, noted, monkeypatch):
    if named is not None:
        monkeypatch.setenv("RAY_ADDRESS", named)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        noted.write_text(f"{address}\n")
        assert cluster.reached("ray") == address


def test_auto_on_a_machine_that_is_no_node_is_a_clear_sentence(noted, monkeypatch):
    assert not noted.exists()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(BadInput) as refused:
        cluster.reached("ray")
    assert refused.value.message == (
        "--on ray: no cluster can be joined: this machine is no node of one, and RAY_ADDRESS=auto asks for "
        "the one that it is a node of"
    )
    assert "worker --head" in refused.value.hint


def test_nobody_to_work_is_said_before_any_work(noted, tmp_path):
    assert not noted.exists()
    with pytest.raises(BadInput, match="no node of one"):
        export("no-such-network.onnx", tmp_path / "out.onnx", on="ray")


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("localhost", True), ("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("[::1]", True),
        ("[::ffff:127.0.0.1]", True), ("::ffff:10.0.0.1", False), ("10.0.0.1", False), ("[fe80::1]", False),
        ("[::]", False), ("127.example.org", False), ("orin", False),
    ],
)  # fmt: skip
def test_loopback_is_known_however_it_is_written(host, alone):
    assert cluster.is_loopback(host) == alone


def test_a_loopback_address_in_brackets_is_reached(noted):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        on = f"ray://[::1]:{listening.getsockname()[1]}"
        assert cluster.reached(on) == on


def gone(*_args, **_rest):
    """Answer as Ray does whose first node has died."""
    raise ConnectionError("the client is not connected")


def another_cluster():
    """Stand for what Ray does at a question of this process where it has joined none."""
    raise AssertionError("Ray joins or starts a cluster that nobody asked for")


NODE = {"Alive": True, "NodeID": "0" * 56, "NodeManagerAddress": "10.0.0.1", "Resources": {}}
PROBE = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: "reference"))


@pytest.mark.parametrize(
    "nodes", [gone, lambda: [NODE]], ids=["before its nodes are known", "before they answer"]
)
def test_a_cluster_that_is_lost_while_it_is_joined_is_an_error_in_words(nodes, monkeypatch):
    monkeypatch.setattr("ray.init", another_cluster)
    ray = SimpleNamespace(
        nodes=nodes, get=gone, remote=lambda _: PROBE, exceptions=SimpleNamespace(RayError=KeyError)
    )
    with pytest.raises(RemoteFailed, match=r"was lost while its nodes were asked.*is not connected"):
        cluster._nodes(ray)
