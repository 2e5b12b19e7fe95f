"""`worker`: what a node says of itself, and where it listens."""

from __future__ import annotations

import contextlib
import importlib.machinery
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import ray_cluster
from ports import free_ports

from se_deploy.commands import worker
from se_deploy.commands.worker import WorkerOptions
from se_deploy.errors import BadInput, MissingRuntime
from se_deploy.schema.results import Doctor, Finding
from se_deploy.sweeps import cluster

COMMAND = "from se_deploy.cli import main; main()"
_WAIT_S = 120


def doctor(gpu=None, tensorrt=None, gpus=0):
    checks = [Finding(name="onnx", state="ok", detail="1.19")]
    checks += [Finding(name="gpu", state="ok", detail=gpu)] if gpu else []
    checks += [Finding(name="tensorrt", state="ok", detail=tensorrt)] if tensorrt else []
    checks += [Finding(name="tensorrt-rtx", state="missing", detail="No module named 'tensorrt_rtx'")]
    return Doctor(tool_version="", warnings=(), checks=tuple(checks), can_build=(), can_run=(), gpus=gpus)


@pytest.mark.parametrize(
    ("gpu", "model", "tags"),
    [
        ("NVIDIA A10, sm86", "", ("sm86", "a10", "tensorrt-10.3")),
        ("NVIDIA GeForce RTX 3090, sm86", "", ("sm86", "rtx-3090", "tensorrt-10.3")),
        ("NVIDIA A100-SXM4-40GB, sm80", "", ("sm80", "a100", "tensorrt-10.3")),
        ("Orin, sm87", "NVIDIA Jetson Orin Nano Developer Kit", ("sm87", "orin-nano", "tensorrt-10.3")),
        ("Orin, sm87", "NVIDIA Jetson Orin Nano Super", ("sm87", "orin-nano-super", "tensorrt-10.3")),
        ("Orin, sm87", "NVIDIA Jetson AGX Orin", ("sm87", "agx-orin", "tensorrt-10.3")),
        ("NVIDIA Something New, sm121", "", ("sm121", "tensorrt-10.3")),
    ],
)
def test_a_node_is_known_by_what_doctor_finds(gpu, model, tags):
    assert worker.tags_of(doctor(gpu, "10.3.0.26"), model) == tags


def test_without_a_gpu_or_a_compiler_it_has_no_tags():
    assert worker.tags_of(doctor(), "") == ()


def planned(options, found=None):
    return worker.plan(options, found or doctor(), model="")


@ray_cluster.NEEDED
def test_ray_is_told_what_there_is():
    found = doctor("NVIDIA A10, sm86", "10.3.0", gpus=2)
    plan = planned(WorkerOptions("192.168.7.1", 6379, tags=("own", "a10"), cpus=3), found)
    assert {"--num-gpus=2", "--num-cpus=3", "--address=192.168.7.1:6379"} <= set(plan.words)
    (resources,) = [json.loads(word.partition("=")[2]) for word in plan.words if "--resources" in word]
    assert resources == dict.fromkeys(
        ["se_deploy:sm86", "se_deploy:a10", "se_deploy:tensorrt-10.3", "se_deploy:own"], 1
    )
    (exposed,) = plan.exposed
    assert "run code" in exposed.text, "Ray listens everywhere, and that is said"
    assert all((one.what in exposed.text) is not one.of_head for one in worker.EVERYWHERE)


@ray_cluster.NEEDED
def test_a_second_node_cannot_join_on_loopback():
    with pytest.raises(BadInput, match="alone"):
        planned(WorkerOptions("127.0.0.1", 6379))
    assert planned(WorkerOptions("127.0.0.1", 6379, head=True)).exposed == ()


@ray_cluster.NEEDED
def test_the_client_port_is_none_of_those_that_ray_gives_workers():
    with pytest.raises(BadInput, match="10002 to 19999"):
        planned(WorkerOptions("127.0.0.1", 6379, head=True, client_port=10100))


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingRuntime) as refused:
        planned(WorkerOptions("10.0.0.1", 6379))
    assert "se-deploy[sweep]" in refused.value.hint


def test_a_node_that_does_not_start_is_an_error():
    with pytest.raises(MissingRuntime, match="exit status 7"):
        worker.serve([sys.executable, "-c", "raise SystemExit(7)"], {})


def processes(mark):
    """The processes that have `mark` in their environment."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                yield path.parent


def _lines(path):
    return Path(path).read_text().splitlines()


def listening(mark):
    """What of those processes listens: its name, its port and its address, as the system writes that."""
    owners = {}
    for process in processes(mark):
        with contextlib.suppress(OSError):
            name = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            owners |= {str(one.readlink()): name for one in (process / "fd").iterdir()}
    rows = [line.split() for kind in ("tcp", "tcp6") for line in _lines(f"/proc/net/{kind}")]
    return {
        (owners[f"socket:[{row[9]}]"], int(row[1].partition(":")[2], 16), row[1].partition(":")[0])
        for row in rows
        if row[3] == "0A" and f"socket:[{row[9]}]" in owners
    }


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


FROM_ELSEWHERE = """
import sys
import stub_steps
from se_deploy.sweeps import cluster
from se_deploy.sweeps.tasks import Task

tasks = [
    Task("a", stub_steps.write, "one", {}),
    Task("b", stub_steps.write, " two", {}, after="a", needs="sm86"),
]

texts = []

def ended(outcome):
    if outcome.output is not None:
        texts.append((outcome.output / "text").read_text())

with cluster.opened(sys.argv[1], retries=0, store=None) as joined:
    tags = joined.nodes[0].tags
    joined.run(tasks, {}, ended=ended, count=lambda count: None)
print(*tags)
print(*texts, sep="\\n")
"""


DYING = """
import os
import sys
from pathlib import Path

if "--mode=specific-server" in sys.orig_argv:
    for left in Path(__file__).parent.glob("dies-*"):
        left.unlink()
        os.abort()
"""  # what serves one that joins, as often as there are files

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@contextlib.contextmanager
def running(folder, host, **environment):
    """Run `worker` as a first node on `host`: its mark, its ports, its environment and its log."""
    ports = free_ports(2, host)
    mark = f"SE_DEPLOY_TEST={uuid.uuid4()}"
    words = ["--head", "--address", f"{host}:{ports[0]}", "--client-port", ports[1], "--tag", "sm86"]
    sources = [folder, Path(worker.__file__).parents[2], Path(__file__).parents[1]]
    # A token that this user has, from any use of Ray, would be asked for by the node and shown by no sweep.
    alone = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join(map(str, sources))}
    environment = os.environ | alone | environment | dict([mark.split("=")])
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "worker", *map(str, words), "--cpus", "1"],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            end = time.monotonic() + _WAIT_S
            while "block forever" not in (folder / "log").read_text():
                assert time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.5)
            while not answers(ports[1]):  # the server of clients starts beside the node, and is up after it
                assert time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.5)
            yield Running(mark, host, *ports, environment, folder / "log", process)
            process.send_signal(signal.SIGINT)
            assert process.wait(_WAIT_S) == 130
        finally:
            sys.stderr.write((folder / "log").read_text())  # shown where the test fails
            process.kill()
            process.wait()
            for left in processes(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(left.name), signal.SIGKILL)


@dataclass
class Running:
    mark: str
    host: str
    port: int
    client_port: int
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes]

    def python(self, code, *words):
        """Start a sweep of this machine; its processes have the mark too."""
        environment = self.environment | {"RAY_ADDRESS": f"{self.host}:{self.port}"}
        return subprocess.Popen(
            [sys.executable, "-c", code, *words],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip


JOINED = """
import sys
from se_deploy.sweeps import cluster

out = sys.stdout
with cluster.opened("ray", retries=0, store=None) as joined:
    print("joined", file=out, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def joined(node):
    """A sweep of this machine that is at work."""
    with node.python(JOINED) as sweep:
        assert sweep.stdout.readline().strip() == "joined"
        yield
        sweep.stdin.close()


@pytest.mark.slow
@ray_cluster.NEEDED
def test_on_loopback_it_listens_nowhere_else_and_serves_sweeps(tmp_path):
    with running(tmp_path, "127.0.0.1") as node:
        with joined(node):
            found = listening(node.mark)
        assert any("JOINED" in name or "cluster.opened" in name for name, _, _ in found), (
            "the sweep's own too"
        )
        assert {one for one in found if one[2] not in LOOPBACK} == set()
        with node.python(FROM_ELSEWHERE, f"ray://127.0.0.1:{node.client_port}") as done:
            text, _ = done.communicate(timeout=_WAIT_S)
        assert done.returncode == 0
        assert "sm86" in text.splitlines()[0].split()
        assert text.splitlines()[1:] == ["one two"]


@pytest.mark.slow
@ray_cluster.NEEDED
def test_a_sweep_joins_where_what_would_serve_it_died_at_its_start(tmp_path):
    """As Ray's does now and then, by a fork beside gRPC's threads."""
    (tmp_path / "sitecustomize.py").write_text(DYING)
    (tmp_path / "dies-once").touch()
    with running(tmp_path, "127.0.0.1", RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S="15") as node:
        with node.python(FROM_ELSEWHERE, f"ray://127.0.0.1:{node.client_port}") as done:
            text, _ = done.communicate(timeout=_WAIT_S)
        assert done.returncode == 0
        assert text.splitlines()[1:] == ["one two"]
    assert not list(tmp_path.glob("dies-*"))


def test_a_cluster_that_serves_no_sweep_says_so(monkeypatch):
    joins = []

    def init(address, **_options):
        joins.append(address)
        raise ConnectionAbortedError(
            "Initialization failure from server:\nTraceback\nRuntimeError: it died\n"
        )

    ray = ModuleType("ray")
    ray.init, ray.__spec__ = init, importlib.machinery.ModuleSpec("ray", None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        address = f"ray://127.0.0.1:{somebody.getsockname()[1]}"
        with pytest.raises(BadInput, match="did not start: RuntimeError: it died"):
            cluster.opened(address, retries=0, store=None).__enter__()
    assert joins == [address] * 4


@ray_cluster.NEEDED
def test_no_handler_of_forks_runs_in_what_ray_starts():
    assert planned(WorkerOptions("10.0.0.1", 6379)).environment["GRPC_ENABLE_FORK_SUPPORT"] == "0"


def outer_address():
    """An address of this machine besides loopback, and as the system writes it; None without one."""
    lines = _lines("/proc/net/fib_trie") if Path("/proc/net/fib_trie").is_file() else []
    for line, kind in itertools.pairwise(lines):
        address = line.rpartition("|-- ")[2]
        if "host LOCAL" in kind and not address.startswith("127."):
            return address, socket.inet_aton(address)[::-1].hex().upper()
    return None


@pytest.mark.slow
@ray_cluster.NEEDED
@pytest.mark.skipif(outer_address() is None, reason="this machine has no address but loopback")
def test_elsewhere_what_listens_on_every_address_is_what_it_says(tmp_path):
    host, written = outer_address()
    with running(tmp_path, host) as node, joined(node):
        found = listening(node.mark)
        said = node.log.read_text()
    wide = {(name, port) for name, port, address in found if address in {"0" * 8, "0" * 32}}
    known = {port for one in worker.EVERYWHERE for port in one.ports}
    unnamed = {
        (name, port)
        for name, port in wide
        if port not in known
        and port != node.port
        and not any(kind in name for one in worker.EVERYWHERE for kind in one.processes)
    }
    assert wide
    assert unnamed == set()
    assert node.client_port not in {port for _, port in wide}, "where sweeps are let in is what was asked for"
    ours = {address[-8:] for _, port, address in found if port == node.client_port}
    assert written in ours
    assert all(one.what in said for one in worker.EVERYWHERE), "and it is said when it starts"
