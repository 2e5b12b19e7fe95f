"""`worker`: what a node says of itself, and where it listens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import ray_cluster

from se_deploy.commands import worker
from se_deploy.commands.worker import WorkerOptions
from se_deploy.errors import BadInput, MissingRuntime
from se_deploy.schema.results import Doctor, Finding

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
    assert "run code" in plan.warnings[0], "Ray listens everywhere, and that is said"


@ray_cluster.NEEDED
def test_a_second_node_cannot_join_on_loopback():
    with pytest.raises(BadInput, match="alone"):
        planned(WorkerOptions("127.0.0.1", 6379))
    assert planned(WorkerOptions("127.0.0.1", 6379, head=True)).warnings == ()


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
    """The addresses on which those processes listen, as the system writes them."""
    inodes = set()
    for process in processes(mark):
        with contextlib.suppress(OSError):
            inodes |= {str(one.readlink()) for one in (process / "fd").iterdir()}
    rows = [line.split() for kind in ("tcp", "tcp6") for line in _lines(f"/proc/net/{kind}")]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


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

def ended(outcome):
    if outcome.output is not None:
        print((outcome.output / "text").read_text())

with cluster.opened(sys.argv[1], retries=0, store=None) as joined:
    print(*joined.nodes[0].tags)
    joined.run(tasks, {}, ended=ended, count=lambda count: None)
"""


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.slow
@ray_cluster.NEEDED
def test_on_loopback_it_listens_nowhere_else_and_serves_sweeps(tmp_path):
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    mark = f"SE_DEPLOY_TEST={uuid.uuid4()}"
    words = ["--head", "--address", f"127.0.0.1:{ports[0]}", "--client-port", ports[1], "--tag", "sm86"]
    sources = [Path(worker.__file__).parents[2], Path(__file__).parents[1]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sources))}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "worker", *map(str, words), "--cpus", "1"],
            env=environment | dict([mark.split("=")]),
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            end = time.monotonic() + _WAIT_S
            while "block forever" not in (tmp_path / "log").read_text():
                assert time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.5)
            while not answers(ports[1]):  # the server of clients starts beside the node, and is up after it
                assert time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.5)
            found = listening(mark)
            assert found
            assert found <= LOOPBACK
            done = subprocess.run(
                [sys.executable, "-c", FROM_ELSEWHERE, f"ray://127.0.0.1:{ports[1]}"],
                env=environment, capture_output=True, text=True, check=False, timeout=_WAIT_S,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            tags, text = done.stdout.splitlines()
            assert "sm86" in tags.split()
            assert text == "one two"
            process.send_signal(signal.SIGINT)
            assert process.wait(_WAIT_S) == 130
        finally:
            process.kill()
            process.wait()
            for left in processes(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(left.name), signal.SIGKILL)
